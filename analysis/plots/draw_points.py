"""Draw panels of points: error bars, the Pareto front, a label at each point or, where they do not fit, a number and a key."""

import itertools
import logging
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.metrics import LOG_SCALE
from analysis.plots.draw import frame_of, freeze, grid, hide_rest, note, over, settle, short, text_size
from analysis.plots.placing import NEAR, Box, nearest, place
from analysis.plots.points import Panel, Point
from analysis.plots.style import COLOURS, GREY, RC, SMALL, figure

log = logging.getLogger(__name__)

WIDE = 20.0
"""Ratio of costs from which the axis is logarithmic."""
FRONT = COLOURS[0]
HARD = "\u00a0"
"""A space at which no line is broken."""


def draw(panels: Sequence[Panel], width: str, *, front: bool = True) -> Figure:
    """The figure of some panels; with `front` the Pareto front as a line and in colour, and a cost axis."""
    with mpl.rc_context(RC):
        rows, columns = grid(len(panels), width, 2)
        made, axes = figure(width, 2.75 * rows, rows, columns)
        hide_rest(axes, len(panels))
        places = [_panel(ax, panel, front) for ax, panel in zip(axes, panels, strict=False)]
        names = [[point.label for point in panel.points] for panel in panels]
        text = _note(panels, front)
        note(made, width, text)
        settle(made, axes)
        boxes = [_place(ax, own, at, panel, front) for ax, own, at, panel in zip(axes, names, places, panels, strict=False)]
        crowded = [i for i, own in enumerate(boxes) if None in own]
        if crowded:
            key = _key([names[i] for i in crowded])
            names = [[str(key[name]) for name in own] if i in crowded else own for i, own in enumerate(names)]
            note(made, width, f"{text}. {', '.join(f'{number} {name}'.replace(' ', HARD) for name, number in key.items())}")
            made.draw_without_rendering()
            boxes = [_place(ax, own, at, panel, front) for ax, own, at, panel in zip(axes, names, places, panels, strict=False)]
            for i in (i for i in crowded if None in boxes[i]):
                boxes[i] = _place(axes[i], names[i], places[i], panels[i], front, strict=False)
                if left := boxes[i].count(None):
                    log.warning("%s, %s: %d points have no room for their numbers; draw fewer", panels[i].model, panels[i].column, left)
        freeze(made)
        for ax, own, found, at, panel in zip(axes, names, boxes, places, panels, strict=False):
            _write(ax, own, found, at, panel, front)
    return made


def zero_place(values: Sequence[float]) -> float | None:
    """Where a logarithmic axis shows 0, a decade below the smallest positive value; None where the axis is to be linear."""
    positive = [value for value in values if value > 0]
    if not positive or min(values) < 0:
        return None
    if max(positive) / min(positive) < WIDE:
        return None
    return 10.0 ** math.floor(math.log10(min(positive))) / 10


def _panel(ax: Axes, panel: Panel, front: bool) -> list[tuple[float, float]]:
    """Draw points and front; where each point is in data coordinates."""
    zero = zero_place([point.x.mean for point in panel.points]) if front else None
    at = [((point.x.mean or zero) if zero else point.x.mean, point.y.mean) for point in panel.points]
    if zero:
        _log_axis(ax, zero, any(point.x.mean == 0 for point in panel.points))
    for (x, y), point in zip(at, panel.points, strict=True):
        on = point.front and front
        ax.errorbar(
            x, y, xerr=[[max(0.0, x - max(point.x.low, zero or point.x.low))], [max(0.0, point.x.high - x)]],
            yerr=[[point.y.mean - point.y.low], [point.y.high - point.y.mean]], fmt="o", color=FRONT if on or not front else GREY,
            markerfacecolor=FRONT if on or not front else "white", markeredgewidth=0.9, elinewidth=0.6, zorder=4 if on else 3,
        )  # fmt: skip
    if front:
        on = sorted(where for where, point in zip(at, panel.points, strict=True) if point.front)
        ax.step(*zip(*on, strict=True), where="post", color=FRONT, linewidth=0.9, zorder=2)
    else:
        ax.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    arrow = "↑" if panel.higher_is_better else "↓"
    ax.set(xlabel=panel.x_title, ylabel=f"{panel.y_title} {arrow}" if front else panel.y_title)
    ax.set_title(f"{panel.model}, {panel.column}" if front else panel.model)
    if panel.y_title in LOG_SCALE:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(short)
        ax.yaxis.set_minor_formatter(short)
    ax.margins(0.12, 0.14)
    if not zero:
        ax.xaxis.set_major_formatter(EngFormatter(sep=" ") if front else ax.xaxis.get_major_formatter())
    return at


def _log_axis(ax: Axes, zero: float, has_zero: bool) -> None:
    ax.set_xscale("log")
    units = EngFormatter(sep=" ")
    ax.xaxis.set_major_locator(LogLocator(numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, zero, has_zero, units)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if has_zero:
        ax.xaxis.set_minor_locator(NullLocator())
        ax.axvline(zero * math.sqrt(10), color=GREY, linewidth=0.6, linestyle=(0, (1, 2)))


def _tick(value: float, zero: float, has_zero: bool, units: EngFormatter) -> str:
    if has_zero and value < zero * 3:
        return "0" if math.isclose(value, zero) else ""
    return units(value)


def _place(
    ax: Axes, names: list[str], at: list[tuple[float, float]], panel: Panel, front: bool, *, strict: bool = True
) -> list[Box | None]:
    """Where the labels go; only where it is not `strict` a line to a label may pass another point."""
    made = ax.figure
    unit = made.dpi / 72
    pixels = [tuple(map(float, ax.transData.transform(where))) for where in at]
    sizes = [text_size(made, name, SMALL) for name in names]
    marks = [(x - 2.6 * unit, y - 2.6 * unit, x + 2.6 * unit, y + 2.6 * unit) for x, y in pixels]
    taken = [] if strict else list(marks)
    taken += [bar for where, point in zip(at, panel.points, strict=True) for bar in _bars(ax, where, point)]
    if front:
        on = sorted(pixel for pixel, point in zip(pixels, panel.points, strict=True) if point.front)
        taken += [(a[0], a[1] - 0.5, b[0], a[1] + 0.5) for a, b in itertools.pairwise(on)]
        taken += [(b[0] - 0.5, min(a[1], b[1]), b[0] + 0.5, max(a[1], b[1])) for a, b in itertools.pairwise(on)]
    return place(pixels, sizes, frame_of(ax), taken, unit, marks if strict else ())


def _bars(ax: Axes, where: tuple[float, float], point: Point) -> list[Box]:
    x, y = ax.transData.transform(where)
    low, high = (ax.transData.transform((where[0], end))[1] for end in (point.y.low, point.y.high))
    left, right = (ax.transData.transform((end or where[0], where[1]))[0] for end in (point.x.low, point.x.high))
    return [(x - 0.5, low, x + 0.5, high), (left, y - 0.5, right, y + 0.5)]


def _write(ax: Axes, names: list[str], boxes: Sequence[Box | None], at: list[tuple[float, float]], panel: Panel, front: bool) -> None:
    """The labels; one that is far from its point is led to it by a line."""
    unit = ax.figure.dpi / 72
    for name, box, where, point in zip(names, boxes, at, panel.points, strict=True):
        if box is None:
            continue
        x, y = ax.transData.transform(where)
        near = nearest(box, (x, y))
        colour = FRONT if point.front and front else GREY
        if math.dist((x, y), near) > NEAR * unit:
            ends = ax.transData.inverted().transform([(x, y), near])
            ax.plot(*zip(*ends, strict=True), color=colour, linewidth=0.4, alpha=0.6, zorder=2, scalex=False, scaley=False)
        middle = ax.transAxes.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        ax.text(*middle, name, transform=ax.transAxes, fontsize=SMALL, color=colour, ha="center", va="center", gid="label", zorder=5)


def _key(names: Sequence[Sequence[str]]) -> dict[str, int]:
    return {name: i + 1 for i, name in enumerate(sorted({name for own in names for name in own}))}


def _note(panels: Sequence[Panel], front: bool) -> str:
    seeds = [point.seeds for panel in panels for point in panel.points]
    left_out = sorted({name for panel in panels for name in panel.left_out})
    wide = front and any(point.x.high > point.x.low for panel in panels for point in panel.points)
    parts = [over(seeds) + (", across: their range" if wide else ""), "line: Pareto front" if front else "vertical line: nothing forgotten"]
    return "; ".join(parts + ([f"not shown (failed seeds or no such cost): {', '.join(left_out)}"] if left_out else []))
