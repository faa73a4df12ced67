"""Learning curves thinned to what a plot can show, extremes kept."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

POINTS = 200
AXES = frozenset(("phase", "step", "examples", "tokens", "seconds", "epoch"))
"""Keys of a history row that say where it is; all other numbers are curves."""
NUMBERS = (int, float)
DIGITS = 5

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def curves(rows: Iterable[Mapping[str, Any]], points: int = POINTS) -> dict[str, Curve]:
    """Each curve of a cell's history, thinned to at most `points`, in `DIGITS` significant digits; keys are `<phase> <name>`.

    Values that are not finite numbers are left out.
    """
    found: dict[tuple[Any, str], Curve] = defaultdict(lambda: ([], []))
    for row in rows:
        phase, step = row.get("phase", ""), row["step"]
        for name, value in row.items():
            if name not in AXES and type(value) in NUMBERS and isfinite(value):
                steps, values = found[phase, name]
                steps.append(step)
                values.append(value)
    return {f"{phase} {name}".strip(): _thinned(steps, values, points) for (phase, name), (steps, values) in found.items()}


def _thinned(steps: list[int], values: list[float], points: int) -> Curve:
    kept = thinned(values, points)
    return [steps[i] for i in kept], [float(f"{values[i]:.{DIGITS}g}") for i in kept]


def thinned(values: Sequence[float], points: int) -> list[int]:
    """Indices of at most `points` values in their order: the first, the last, and the lowest and highest of each equal stretch.

    What a plot of the kept points shows has the same minimum and maximum as the whole, within each stretch too. `points` >= 4.
    """
    n = len(values)
    if n <= points:
        return list(range(n))
    stretches = (points - 2) // 2
    bounds = [1 + i * (n - 2) // stretches for i in range(stretches + 1)]
    kept = {0, n - 1}
    for low, high in pairwise(bounds):
        kept.add(min(range(low, high), key=values.__getitem__))
        kept.add(max(range(low, high), key=values.__getitem__))
    return sorted(kept)
