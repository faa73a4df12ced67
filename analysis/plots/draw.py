"""What all figures share: grids of panels, a note under them, layout that is frozen before labels are placed."""

import re
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.placing import Box
from analysis.plots.style import GREY, SMALL, TITLE, WIDTHS
from methods.spec import UserError

MOST = 30
"""Panels of one figure."""


def grid(panels: int, width: str, most: int) -> tuple[int, int]:
    """Rows and columns for a number of panels with at most `most` in a row; `UserError` for more panels than a figure can show."""
    if panels > MOST:
        raise UserError(f"that would be {panels} panels, a figure shows {MOST}; choose with --protocol, --model or --methods")
    columns = min(panels, most if width == "page" else max(1, most // 2))
    return -(-panels // columns), columns


def hide_rest(axes: Sequence[Axes], used: int) -> None:
    """Take away the axes of a grid that have no panel."""
    for unused in axes[used:]:
        unused.set_axis_off()


def note(made: Figure, width: str, text: str) -> None:
    """Text under the figure, wrapped to its width."""
    wrapped = textwrap.fill(text, int(WIDTHS[width] * 72 / (SMALL * 0.53)))
    made.supxlabel(wrapped, fontsize=SMALL, color=GREY, x=0.01, ha="left")


def over(seeds: Sequence[int], what: str = "bars") -> str:
    """How the spread is to be read: `bars: ± 1 standard deviation over seeds (n = 3)`."""
    low, high = min(seeds), max(seeds)
    if high < 2:
        return f"one seed: no {what}"
    n = f"n = {low}" if low == high else f"n = {low} to {high}"
    return f"{what}: ± 1 standard deviation over seeds ({n})"


def settle(made: Figure, axes: Sequence[Axes], size: float = TITLE) -> None:
    """Lay the figure out with every title broken into lines that are as wide as its axes."""
    made.draw_without_rendering()
    for ax in axes:
        if text := ax.get_title(loc="left"):
            wide = ax.get_window_extent().width
            fits = (lines for most in range(len(text), 0, -1) if _widest(made, lines := broken(text, most), size) <= wide)
            ax.set_title("\n".join(next(fits, [text])), fontsize=size)
    made.draw_without_rendering()


def _widest(made: Figure, lines: Sequence[str], size: float) -> float:
    return max(text_size(made, line, size)[0] for line in lines)


def broken(text: str, most: int) -> list[str]:
    """Lines of at most `most` characters, broken after a space, `/`, `@`, `-` or `,` where there is one, else anywhere."""
    lines = [""]
    for piece in re.findall(r"[^ /@,-]*[ /@,-]|[^ /@,-]+", text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
    return [part.strip() for line in lines for part in (textwrap.wrap(line, max(1, most)) or [line])]


def freeze(made: Figure) -> None:
    """Lay the figure out and keep it so: what is placed afterwards moves nothing."""
    made.draw_without_rendering()
    made.set_layout_engine("none")


def frame_of(axes: Axes) -> Box:
    """The axes in pixels."""
    box = axes.get_window_extent()
    return (box.x0, box.y0, box.x1, box.y1)


def short(value: float, _: object = None) -> str:
    """A tick of a logarithmic axis: `0.001`, `1e-5`."""
    text = f"{value:g}" if value >= 0.001 else np.format_float_scientific(value, precision=3, trim="-")
    return text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def text_size(made: Figure, text: str, size: float) -> tuple[float, float]:
    """Width and height of a line of text in pixels."""
    probe = made.text(0, 0, text, fontsize=size)
    box = probe.get_window_extent(made.canvas.get_renderer())
    probe.remove()
    return box.width, box.height
