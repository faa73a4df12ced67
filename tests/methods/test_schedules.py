"""The cubic schedule against worked values, its boundaries, and the integral of its own derivative."""

from itertools import pairwise

import pytest

from methods.maths.schedules import cubic, settled

T = 1000
WORKED = {0: 0.0, 100: 0.0, 101: 0.0044925, 250: 0.5203125, 400: 0.7875, 550: 0.8859375, 700: 0.9, 701: 0.9, 1000: 0.9}
"""T = 1000, first 10 % dense, last 30 % at 0.9."""


@pytest.mark.parametrize(("step", "sparsity"), WORKED.items())
def test_worked_values(step: int, sparsity: float) -> None:
    assert cubic(step, T, 0.1 * T, 0.3 * T, 0.0, 0.9) == pytest.approx(sparsity, abs=1e-7)


def test_boundaries_belong_to_the_plateaus_and_the_ramp_is_monotone() -> None:
    """t = t_i still has s_0, the first update after T - t_f has s_f exactly, in between every update adds."""
    values = [cubic(step, 60, 6, 18, 0.2, 0.7) for step in range(61)]
    assert values[:7] == [0.2] * 7 and values[43:] == [0.7] * 18
    assert all(a < b for a, b in pairwise(values[6:43]))
    assert values[42] == pytest.approx(0.7, abs=1e-15)


def test_increments_follow_the_derivative() -> None:
    """s' = 3 (s_f - s_0) / n (1 - x)^2: steepest at the start, where most weights are redundant."""
    n, step = 600, 350
    slope = cubic(step + 1, T, 100, 300, 0.0, 0.9) - cubic(step - 1, T, 100, 300, 0.0, 0.9)
    assert slope / 2 == pytest.approx(3 * 0.9 / n * (1 - (step - 100) / n) ** 2, rel=1e-4)


def test_a_falling_quantity() -> None:
    """Movement pruning writes the same for the share that is kept: v = 1 - s."""
    for step in (0, 101, 333, 700, 1000):
        assert cubic(step, T, 100, 300, 1.0, 0.1) == pytest.approx(1 - cubic(step, T, 100, 300, 0.0, 0.9), abs=1e-12)


def test_without_a_ramp_it_is_a_step() -> None:
    assert [cubic(step, 10, 4, 6, 0.0, 0.5) for step in range(3, 7)] == [0.0, 0.0, 0.5, 0.5]
    assert [cubic(step, 10, 8, 6, 0.0, 0.5) for step in (8, 9, 10)] == [0.0, 0.5, 0.5]


def test_the_last_update_is_settled_even_without_a_final_phase() -> None:
    assert [step for step in range(11) if settled(step, 10, 3)] == [8, 9, 10]
    assert [step for step in range(11) if settled(step, 10, 0)] == [10]
    assert cubic(10, 10, 0, 0, 0.0, 0.9) == 0.9
    assert [cubic(step, 1, 0.1, 0.3, 0.0, 0.5) for step in (0, 1)] == [0.0, 0.5]
