"""The search finds what trying every position finds, with few counts."""

import random

import pytest

from harness.search import NoPositionError, nearest


def test_the_search_equals_trying_all_positions() -> None:
    """Monotone counts up or down, with plateaus and positions that are not allowed."""
    for seed in range(500):
        draws = random.Random(seed)
        allowed = sorted(draws.sample(range(1, 65), k=draws.randint(2, 40)))
        values = sorted(draws.choices(range(1, 10**4), k=len(allowed)), reverse=draws.random() < 0.5)
        counts, budget = dict(zip(allowed, values, strict=True)), draws.randint(min(values), max(values) - 1)
        assert counts[nearest(counts.get, budget, range(1, 65))] == max(value for value in values if value <= budget), seed


def test_a_straight_line_takes_few_counts() -> None:
    asked: list[int] = []

    def count(position: int) -> int:
        asked.append(position)
        return 1000 + 36_864 * position

    assert nearest(count, 10**9, (2**power for power in range(25))) == (10**9 - 1000) // 36_864
    assert len(asked) <= 16 + 3


UNREACHABLE = {
    "flat": (lambda i: 7, 6),
    "too much everywhere": (lambda i: 10**9 + i, 2),
    "never enough": (lambda i: i, 25),
    "never enough and falling": (lambda i: 10**7 // i, 2),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_what_cannot_be_bracketed_is_given_up_early_and_says_what_was_counted(name: str) -> None:
    count, asked = UNREACHABLE[name]
    with pytest.raises(NoPositionError) as found:
        nearest(count, 10**8, (2**power for power in range(25)))
    assert len(found.value.counts) == asked
