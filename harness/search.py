"""Finds the position whose count is as near as possible to a budget and not above it. Pure, torch-free."""

from collections.abc import Callable, Iterable

Count = Callable[[int], int | None]
"""Position -> what is counted there, None where the position is not allowed; monotone over the allowed ones, up or down."""
ALIKE = 6
"""So many probes with one and the same count, and the position does not matter."""
NEAR = 64
"""How far around a position that is not allowed another one is looked for."""


class NoPositionError(ValueError):
    """No position fits, or every one does. `counts`: what was counted where."""

    def __init__(self, counts: dict[int, int]) -> None:
        super().__init__(f"{len(counts)} positions do not bracket the budget")
        self.counts = counts


def nearest(count: Count, budget: int, probes: Iterable[int]) -> int:
    """The position with the largest count that is not above `budget`; at the far end of a plateau.

    `probes` are tried in order until one fits and one does not; `NoPositionError` where they never bracket the budget.
    """
    fits, over = _bracket(count, budget, probes)
    turn = 0
    while abs(over[0] - fits[0]) > 1:
        turn += 1
        guess = _between(fits, over, budget, straight=turn < 3 or turn % 2 == 1)
        found = _allowed_near(count, guess, *sorted((fits[0], over[0])))
        if found is None:
            over = (guess, over[1])
        elif found[1] <= budget:
            fits = found
        else:
            over = found
    return fits[0]


def _bracket(count: Count, budget: int, probes: Iterable[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The last probe that fits and the nearest known one that does not, each with its count."""
    counts: dict[int, int] = {}
    for position in probes:
        if (counted := count(position)) is None:
            continue
        counts[position] = counted
        fits = {p: n for p, n in counts.items() if n <= budget}
        over = {p: n for p, n in counts.items() if n > budget}
        if fits and over:
            a, b = min(((p, q) for p in fits for q in over), key=lambda pair: abs(pair[0] - pair[1]))
            return (a, fits[a]), (b, over[b])
        if _hopeless(counts, fits):
            break
    raise NoPositionError(counts)


def _hopeless(counts: dict[int, int], fits: dict[int, int]) -> bool:
    """All are alike; none fits and later ones count more; or all fit and later ones count less."""
    first, last = counts[min(counts)], counts[max(counts)]
    if len(set(counts.values())) == 1:
        return len(counts) >= ALIKE
    return first > last if fits else first < last


def _between(fits: tuple[int, int], over: tuple[int, int], budget: int, straight: bool) -> int:
    """A position strictly between: on the straight line through both counts, or the middle."""
    (a, at_a), (b, at_b) = fits, over
    gap = abs(b - a)
    offset = (budget - at_a) * gap // (at_b - at_a) if straight else gap // 2
    offset = min(max(offset, 1), gap - 1)
    return a + offset if b > a else a - offset


def _allowed_near(count: Count, guess: int, low: int, high: int) -> tuple[int, int] | None:
    """The allowed position next to `guess` strictly between `low` and `high`, with its count."""
    for distance in range(NEAR + 1):
        for position in dict.fromkeys((guess - distance, guess + distance)):
            if low < position < high and (counted := count(position)) is not None:
                return position, counted
    return None
