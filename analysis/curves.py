"""Learning curves thinned to what a plot can show, extremes kept."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

POINTS = 200
AXES = ("phase", "step", "examples", "tokens", "seconds", "epoch")
"""Keys of a history row that say where it is; all other numbers are curves."""
DIGITS = 5

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def curves(rows: Iterable[Mapping[str, Any]], points: int = POINTS) -> dict[str, Curve]:
    """Each curve of a cell's history, thinned to at most `points`, in `DIGITS` significant digits; keys are `<phase> <name>`.

    Values that are not finite numbers are left out.
    """
    found: dict[str, Curve] = defaultdict(lambda: ([], []))
    for row in rows:
        for name, value in row.items():
            if name not in AXES and isinstance(value, int | float) and math.isfinite(value):
                steps, values = found[f"{row.get('phase', '')} {name}".strip()]
                steps.append(int(row["step"]))
                values.append(float(value))
    return {name: _thinned(steps, values, points) for name, (steps, values) in found.items()}


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
    inner = np.asarray(values[1:-1], dtype=float)
    bounds = np.linspace(0, n - 2, (points - 2) // 2 + 1).astype(int)
    kept = {0, n - 1}
    for low, high in pairwise(bounds):
        stretch = inner[low:high]
        kept |= {1 + low + int(stretch.argmin()), 1 + low + int(stretch.argmax())}
    return sorted(kept)
