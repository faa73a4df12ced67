"""The critical difference diagram of Demsar (2006): mean ranks across tasks, and which are not told apart."""

from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.draw import freeze, note
from analysis.plots.style import COLOURS, GREY, RC, SMALL, figure
from analysis.ranks import Ranking
from analysis.tables import Across


@dataclass(frozen=True)
class Stem:
    """One method: its mean rank on the axis, and the line of text that it leads to."""

    label: str
    rank: float
    left: bool
    """Its text stands at the left end."""
    line: int
    """0 = the line next to the axis."""


@dataclass(frozen=True)
class Bar:
    """Methods that are not told apart, as a bar from rank to rank."""

    low: float
    high: float
    line: int


@dataclass(frozen=True)
class Diagram:
    """What is drawn."""

    stems: tuple[Stem, ...]
    bars: tuple[Bar, ...]
    critical_difference: float


def diagram(ranking: Ranking) -> Diagram:
    """The better half at the left, the outermost next to the axis, so that no stems cross; bars on as few lines as keep them apart."""
    ordered = ranking.standings
    half = (len(ordered) + 1) // 2
    lines = [*range(half), *reversed(range(len(ordered) - half))]
    stems = tuple(Stem(one.label, one.rank, i < half, line) for i, (one, line) in enumerate(zip(ordered, lines, strict=True)))
    rank = {one.label: one.rank for one in ordered}
    ends: list[float] = []
    bars = []
    for group in ranking.groups:
        low, high = rank[group[0]], rank[group[-1]]
        line = next((i for i, end in enumerate(ends) if end < low), len(ends))
        ends[line : line + 1] = [high]
        bars.append(Bar(low, high, line))
    return Diagram(stems, tuple(bars), ranking.critical_difference)


def draw(found: list[Across], width: str) -> Figure:
    """A diagram for each model and form."""
    with mpl.rc_context(RC):
        diagrams = [diagram(across.ranking) for across in found]
        heights = [0.5 + 0.09 * len({bar.line for bar in made.bars}) + 0.13 * (1 + len(made.stems) // 2) for made in diagrams]
        made, axes = figure(width, sum(heights) + 0.35 * len(heights), len(found), 1)
        for ax, own, across in zip(axes, diagrams, found, strict=True):
            _draw(ax, own)
            ax.set_title(f"{across.model}, {across.form}: mean rank over {len(across.ranking.tasks)} tasks (1 = best)")
        note(made, width, "; ".join(_said(across.ranking) for across in found))
        freeze(made)
    return made


def _said(ranking: Ranking) -> str:
    p = "" if ranking.p is None else "Friedman p < 0.001; " if ranking.p < 0.001 else f"Friedman p = {ranking.p:.3f}; "
    return f"{p}bars join methods whose mean ranks differ by less than CD (Nemenyi, 5 %); tasks: {', '.join(ranking.tasks)}"


def _draw(ax: Axes, found: Diagram) -> None:
    """Ranks along x; down y: the axis at 0, then the bars, then the lines of text."""
    last = len(found.stems)
    bars = 1 + max((bar.line for bar in found.bars), default=-1)
    first = 0.7 + 0.6 * bars
    low, high = 1 - 0.32 * (last - 1), last + 0.32 * (last - 1)
    ax.plot([1, last], [0, 0], color="black", linewidth=0.8)
    for rank in range(1, last + 1):
        ax.plot([rank, rank], [0, -0.25], color="black", linewidth=0.6)
        ax.text(rank, -0.35, str(rank), ha="center", va="bottom", fontsize=SMALL)
    for stem in found.stems:
        y, end, side = first + stem.line, low if stem.left else high, "left" if stem.left else "right"
        ax.plot([stem.rank, stem.rank, end], [0, y, y], color=GREY, linewidth=0.6)
        ax.text(end, y - 0.08, f"{stem.label} {stem.rank:.2f}", ha=side, va="bottom", fontsize=SMALL)
    for bar in found.bars:
        y = 0.45 + 0.6 * bar.line
        ax.plot([bar.low - 0.04, bar.high + 0.04], [y, y], color=COLOURS[0], linewidth=2.2, solid_capstyle="round")
    length = min(found.critical_difference, high - low)
    ax.plot([low, low + length], [-1.5, -1.5], color="black", linewidth=0.8, marker="|", markersize=4)
    ax.text(low + length / 2, -1.65, f"CD = {found.critical_difference:.2f}", ha="center", va="bottom", fontsize=SMALL)
    ax.set(xlim=(low - 0.02 * (high - low), high + 0.02 * (high - low)), ylim=(first + (last + 1) // 2, -2.6))
    ax.set_axis_off()
