"""Draw lines with bands, each labelled at its end; many lines get a panel each."""

import math
from collections.abc import Sequence
from itertools import pairwise

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from analysis.plots.curves import Panel, Series
from analysis.plots.draw import frame_of, freeze, grid, hide_rest, note, over, settle, short, text_size
from analysis.plots.placing import NEAR, Box, nearest, place, spread
from analysis.plots.style import COLOURS, DASHES, GREY, MARKERS, PALE, RC, SMALL, WIDTHS, figure

FEW = len(COLOURS)
"""Lines that share a panel; more are drawn in panels of their own, with the others in grey behind."""
MANY_STOPS = 12
"""From here on a line has no markers."""


def draw(panels: Sequence[Panel], width: str) -> Figure:
    """The figure of some panels."""
    with mpl.rc_context(RC):
        made = _apart(panels, width) if any(len(panel.series) > FEW for panel in panels) else _together(panels, width)
    return made


def _together(panels: Sequence[Panel], width: str) -> Figure:
    """Labels at the lines' ends: beside them where lines end at different places and there is room, else at the right of the axes."""
    rows, columns = grid(len(panels), width, 2)
    made, axes = figure(width, 2.2 * rows + 0.2, rows, columns)
    hide_rest(axes, len(panels))
    order = sorted({line.label for panel in panels for line in panel.series})
    for ax, panel in zip(axes, panels, strict=False):
        _panel(ax, panel, order)
    note(made, width, _note(panels))
    settle(made, axes)
    beside = [_beside(ax, panel) for ax, panel in zip(axes, panels, strict=False)]
    outside = [[] if boxes else _outside(ax, panel, order) for ax, panel, boxes in zip(axes, panels, beside, strict=False)]
    freeze(made)
    for ax, panel, boxes, texts in zip(axes, panels, beside, outside, strict=False):
        _spread(ax, texts)
        _write(ax, panel, boxes, order)
    return made


def _panel(ax: Axes, panel: Panel, order: Sequence[str]) -> None:
    _scales(ax, panel)
    for line in panel.series:
        i = order.index(line.label)
        _line(ax, line, _colour(line, order), DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
    for line in panel.references:
        ax.axhline(line.stops[0].mean, color=GREY, linewidth=0.7, linestyle=(0, (2, 2)))
    ax.set_title(panel.title)
    ax.set(xlabel=_title(panel.x_title), ylabel=panel.y_title)


def _colour(line: Series, order: Sequence[str]) -> str:
    return COLOURS[order.index(line.label) % FEW] if line.label in order else GREY


def _beside(ax: Axes, panel: Panel) -> list[Box]:
    """Boxes for the labels inside the axes, clear of all lines; none where lines end together or one label finds no room."""
    ends = {line.stops[-1].x for line in panel.series}
    if len(ends) == 1 or panel.references:
        return []
    pixels = [[tuple(ax.transData.transform((stop.x, stop.mean))) for stop in line.stops] for line in panel.series]
    sizes = [text_size(ax.figure, line.label, SMALL) for line in panel.series]
    unit = ax.figure.dpi / 72
    taken = [box for line in pixels for box in _along(line, unit)]
    found = place([line[-1] for line in pixels], sizes, frame_of(ax), taken, unit)
    boxes = [box for box in found if box]
    return boxes if len(boxes) == len(found) else []


def _along(line: Sequence[tuple[float, float]], unit: float) -> list[Box]:
    """Small boxes that cover a line of pixels."""
    half, mark = 1.5 * unit, 2.8 * unit
    boxes = [(x - mark, y - mark, x + mark, y + mark) for x, y in line]
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / half))
        at = [(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps) for i in range(steps)]
        boxes += [(x - half, y - half, x + half, y + half) for x, y in at]
    return boxes


def _write(ax: Axes, panel: Panel, boxes: Sequence[Box], order: Sequence[str]) -> None:
    for line, box in zip(panel.series, boxes, strict=False):
        end = tuple(ax.transData.transform((line.stops[-1].x, line.stops[-1].mean)))
        near, inverse = nearest(box, end), ax.transAxes.inverted()
        if math.dist(near, end) > NEAR * ax.figure.dpi / 72:
            ends = inverse.transform([end, near])
            ax.plot(*zip(*ends, strict=True), transform=ax.transAxes, color=_colour(line, order), linewidth=0.4)
        middle = inverse.transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        style = {"fontsize": SMALL, "color": _colour(line, order), "ha": "center", "va": "center", "gid": "label"}
        ax.text(*middle, line.label, transform=ax.transAxes, **style)


def _outside(ax: Axes, panel: Panel, order: Sequence[str]) -> list[tuple[mpl.text.Text, float]]:
    """Labels at the right of the axes, each with the y where its line ends."""
    style = {"transform": ax.transAxes, "fontsize": SMALL, "va": "center", "gid": "label"}
    return [
        (ax.text(1.06, 0.5, line.label, color=_colour(line, order), **style), line.stops[-1].mean)
        for line in (*panel.series, *panel.references)
    ]


def _line(ax: Axes, line: Series, colour: str, dash: object, marker: str) -> None:
    x = [stop.x for stop in line.stops]
    if any(stop.high > stop.low for stop in line.stops):
        ax.fill_between(x, [stop.low for stop in line.stops], [stop.high for stop in line.stops], color=colour, alpha=0.18, linewidth=0)
    marks = marker if len(x) < MANY_STOPS else None
    ax.plot(x, [stop.mean for stop in line.stops], color=colour, linestyle=dash, marker=marks, gid=line.label)


def _scales(ax: Axes, panel: Panel) -> None:
    if panel.log_x:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_major_formatter(short)
        ax.xaxis.set_minor_formatter(NullFormatter())
    elif max(stop.x for line in panel.series for stop in line.stops) >= 10_000:
        ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    if panel.log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(short)
        ax.yaxis.set_minor_formatter(short)


def _spread(ax: Axes, texts: Sequence[tuple[mpl.text.Text, float]]) -> None:
    """Move the labels apart, and lead each from the height at which its line ends."""
    tallest = max((text_size(ax.figure, text.get_text(), SMALL)[1] for text, _ in texts), default=0.0)
    height = (1.04 * tallest + 1) / ax.get_window_extent().height
    right = ax.get_xlim()[1]
    ends = [ax.transAxes.inverted().transform(ax.transData.transform((right, y)))[1] for _, y in texts]
    for (text, _), end, middle in zip(texts, ends, spread(ends, height, -0.15, 1.15), strict=True):
        text.set_y(middle)
        style = {"transform": ax.transAxes, "color": text.get_color(), "linewidth": 0.5}
        ax.plot([1.005, 1.05], [end, middle], clip_on=False, solid_capstyle="round", **style)


def _apart(panels: Sequence[Panel], width: str) -> Figure:
    """A panel per line and quantity; the other lines of its panel pale behind."""
    shown = [(panel, line) for panel in panels for line in panel.series]
    rows, columns = grid(len(shown), width, _across([line.label for _, line in shown], width))
    made, axes = figure(width, 1.05 * rows + 0.35, rows, columns, sharex=len(panels) == 1, sharey=len(panels) == 1)
    hide_rest(axes, len(shown))
    for i, (ax, (panel, line)) in enumerate(zip(axes, shown, strict=False)):
        _scales(ax, panel)
        if panel.log_x:
            ax.xaxis.set_major_locator(LogLocator(numticks=4))
        for other in panel.series:
            ax.plot([stop.x for stop in other.stops], [stop.mean for stop in other.stops], color=PALE, linewidth=0.4, zorder=1)
        _line(ax, line, COLOURS[0], "-", ".")
        ax.set_title(line.label)
        if i + columns >= len(shown):
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(_title(panel.x_title))
        if i % columns == 0:
            ax.set_ylabel(panel.y_title)
    titles = "; ".join(dict.fromkeys(panel.title for panel in panels))
    note(made, width, f"{titles}; grey: the others; {_note(panels)}")
    settle(made, axes, SMALL)
    freeze(made)
    return made


def _across(titles: Sequence[str], width: str) -> int:
    """How many panels fit beside each other with their titles (as `grid` takes it)."""
    inches = max(0.95, 0.3 + max(map(len, titles)) * SMALL * 0.6 / 72)
    fit = max(1, min(5, int(WIDTHS[width] / inches)))
    return fit if width == "page" else 2 * fit


def _title(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ").replace("lr", "learning rate") if "." in key else key


def _note(panels: Sequence[Panel]) -> str:
    seeds = [stop.seeds for panel in panels for line in panel.series for stop in line.stops]
    left_out = sorted({name for panel in panels for name in panel.left_out})
    return over(seeds, "band") + (f"; not shown (failed seeds): {', '.join(left_out)}" if left_out else "")
