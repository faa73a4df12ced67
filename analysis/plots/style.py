"""One look for all figures: widths of a paper, colours that colour-blind readers tell apart, embedded fonts, equal bytes for equal data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from methods.spec import UserError

WIDTHS = {"column": 3.3, "page": 6.8}
"""Inches."""
ENDINGS = ("pdf", "svg", "png")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), "Color Universal Design", without the yellow, which is too pale for lines on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1.5)), (0, (8, 2)), (0, (4, 1.2, 1.2, 1.2, 1.2, 1.2)))
GREY, PALE = "#595959", "#B8B8B8"
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
TITLE = 7.5
"""Points of the font of titles."""
DPI = 300
"""Of PNG files; figures are laid out at the same, since text is wider or narrower at another."""
RC = {
    "font.family": "DejaVu Sans", "font.size": 7.5, "axes.titlesize": TITLE, "axes.labelsize": 7.5, "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5, "ytick.minor.size": 1.5, "lines.linewidth": 1.1, "lines.markersize": 3.5, "axes.grid": True,
    "grid.color": "#E6E6E6", "grid.linewidth": 0.5, "axes.axisbelow": True, "text.parse_math": False, "axes.titlelocation": "left",
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "parebench", "savefig.dpi": DPI, "figure.dpi": DPI,
    "axes.unicode_minus": True, "axes.formatter.use_mathtext": False,
}  # fmt: skip
SMALL = 6.0
"""Points of a font for labels inside a figure, the smallest that is used."""


def figure(width: str, height: float, rows: int = 1, columns: int = 1, **given: Any) -> tuple[Figure, list[Axes]]:
    """A figure of `rows` x `columns` axes, `height` inches; axes row by row; `given` to `Figure.subplots`. To be called in `RC`."""
    made = Figure(figsize=(WIDTHS[width], height), layout="constrained")
    FigureCanvasAgg(made)
    made.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.05)
    return made, list(made.subplots(rows, columns, squeeze=False, **given).ravel())


def save(made: Figure, out: Path) -> None:
    """Write the figure, by the ending of `out`; without dates, so that the same records give the same file."""
    ending = out.suffix.removeprefix(".").lower()
    if ending not in ENDINGS:
        raise UserError(f"--out {out} is not a figure; give a name that ends in {', '.join('.' + name for name in ENDINGS)}")
    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context(RC):
            made.savefig(out, metadata=dated[ending])
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}); give a file in a folder that is yours") from error


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, in their order."""
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(labels))}
