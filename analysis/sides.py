"""Side columns of a table: what a row costs, and how its learning rate was found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.tuning import TUNED, of_row

if TYPE_CHECKING:
    from analysis.tables import Row, Span

DASH = "–"  # noqa: RUF001
SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Side:
    """One side column."""

    title: str
    text: Callable[["Row"], str]
    number: Callable[["Row"], float | None]
    """What it is sorted by; None where there is nothing."""


def span_text(span: "Span | None", shown: Callable[[float], str]) -> str:
    """One value, or the range over the cells of a row."""
    return DASH if span is None else DASH.join(dict.fromkeys(map(shown, (span.low, span.high))))


def rounded(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def counted(value: float) -> str:
    """`294k`, `2.82M`, `7B`."""
    for size, suffix in SUFFIXES:
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.0f}"


def _cost(title: str, name: str, unit: float = 1.0, shown: Callable[[float], str] = rounded) -> Side:
    def text(row: "Row") -> str:
        return span_text(getattr(row.costs, name), lambda value: shown(value / unit))

    def number(row: "Row") -> float | None:
        span = getattr(row.costs, name)
        return span.mean if span else None

    return Side(title, text, number)


def trials(row: "Row") -> str:
    """How many trials the searches behind a row had; `?` where a search is not recorded."""
    found = ["?" if tuning.search is None else str(tuning.search.trials) for tuning in of_row(row) if tuning.origin == TUNED]
    return ", ".join(dict.fromkeys(found)) or DASH


def origin(row: "Row") -> str:
    """Where the learning rates of a row came from."""
    return ", ".join(dict.fromkeys(tuning.origin for tuning in of_row(row))) or DASH


def _most_trials(row: "Row") -> float | None:
    return max((float(tuning.search.trials) for tuning in of_row(row) if tuning.search), default=None)


def _nothing(_: "Row") -> None:
    return None


SIDES = {
    "train_percent": _cost("train %", "trainable_method"),
    "head_percent": _cost("head %", "trainable_head"),
    "parameters": _cost("params", "trainable", shown=counted),
    "zeros_percent": _cost("zeros %", "sparsity"),
    "megabytes": _cost("MB", "bytes", 1e6),
    "shipped_megabytes": _cost("ship MB", "bytes_shipped", 1e6),
    "flops": _cost("FLOPs", "flops", shown=lambda value: f"{value:.2e}"),
    "memory": _cost("peak GB", "peak_memory", 1e9),
    "seconds": _cost("s", "seconds"),
    "trials": Side("trials", trials, _most_trials),
    "origin": Side("origin", origin, _nothing),
}
"""Name, as layouts give it, -> the column."""
DEFAULT = ("train_percent", "head_percent", "zeros_percent", "megabytes", "shipped_megabytes", "seconds", "trials", "origin")
