"""Draw matrices with their numbers in the cells."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.plots.draw import freeze, grid, hide_rest, note, settle, text_size
from analysis.plots.heat import Heat
from analysis.plots.style import DIVERGING, PALE, RC, SEQUENTIAL, SMALL, figure


def draw(heats: Sequence[Heat], width: str) -> Figure:
    """The figure of some matrices; those of one quantity share their colours."""
    with mpl.rc_context(RC):
        rows, columns = grid(len(heats), width, 2)
        tall = [max(len(heat.rows) for heat in heats[i * columns : (i + 1) * columns]) for i in range(rows)]
        heights = [0.22 * max(2, n) + 0.3 for n in tall]
        made, axes = figure(width, sum(heights) + 0.45 * rows + 0.2, rows, columns, height_ratios=heights)
        hide_rest(axes, len(heats))
        for ax, heat in zip(axes, heats, strict=False):
            _matrix(ax, heat, _norm([other for other in heats if other.what == heat.what]))
        note(made, width, "; ".join(dict.fromkeys(heat.what for heat in heats)))
        settle(made, axes)
        freeze(made)
        for ax, heat in zip(axes, heats, strict=False):
            _numbers(ax, heat)
    return made


def _norm(heats: Sequence[Heat]) -> Normalize:
    values = np.concatenate([heat.values[~np.isnan(heat.values)] for heat in heats])
    low, high = min(0.0, float(values.min())), float(values.max())
    if heats[0].diverging:
        low, high = -max(-low, high), max(-low, high)
    return Normalize(low, high if high > low else low + 1)


def _matrix(ax: Axes, heat: Heat, norm: Normalize) -> None:
    colours = mpl.colormaps[DIVERGING if heat.diverging else SEQUENTIAL].with_extremes(bad=PALE)
    ax.imshow(heat.values, cmap=colours, norm=norm, aspect="auto")
    ax.set_xticks(range(len(heat.columns)), heat.columns, rotation=0 if max(map(len, heat.columns)) < 4 else 90)
    ax.set_yticks(range(len(heat.rows)), heat.rows)
    ax.set(xlabel=heat.column_title, ylabel=heat.row_title)
    ax.set_title(heat.title)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def number(value: float, decimals: int) -> str:
    """A value as it stands in its cell, without the zero before the point."""
    if np.isnan(value):
        return ""
    text = f"{value:.{decimals}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _numbers(ax: Axes, heat: Heat) -> None:
    """Write the values where the widest fits into a cell, in black or white, whichever is read better."""
    values = heat.values[~np.isnan(heat.values)]
    least = 2 if np.abs(values).max() < 2 else 1
    decimals = next((d for d in (0, 1) if np.allclose(values, values.round(d))), least)
    box = ax.get_window_extent()
    widest = max((number(value, decimals) for value in values), key=len)
    width, height = text_size(ax.figure, widest, SMALL)
    if width > 0.95 * box.width / len(heat.columns) or height > box.height / len(heat.rows):
        return
    image = ax.get_images()[0]
    for (row, column), value in np.ndenumerate(heat.values):
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
        ax.text(column, row, number(value, decimals), ha="center", va="center", fontsize=SMALL, color=ink)
