"""The cubic sparsity schedule (Zhu & Gupta 2017, arXiv 1710.01878, Eq. 1), with the boundaries of movement pruning and PST. Pure.

After t of T optimizer updates: s(t) = s_0 while t <= t_i; s_f once t > T - t_f; else s_f + (s_0 - s_f) (1 - (t - t_i) / (T - t_i - t_f))^3.
"""


def cubic(step: int, total: int, start: float, end: float, initial: float, final: float) -> float:
    """s after `step` of `total` updates, for the next forward pass.

    Args:
        step: t >= 0.
        total: T >= 1.
        start: t_i, updates at the beginning under `initial`; may be fractional.
        end: t_f, updates at the end under `final`; may be fractional.
        initial: s_0.
        final: s_f, below or above `initial`.
    """
    if step <= start:
        return initial
    if settled(step, total, end):
        return final
    left = 1 - (step - start) / (total - start - end)
    return final + (initial - final) * left**3


def settled(step: int, total: int, end: float) -> bool:
    """Is s_f reached for good after `step` of `total` updates: t > T - t_f, and always after the last update?"""
    return step > total - end or step >= total
