"""Resampling until a verifier accepts, when the verifier is imperfect (Stroebl et al., arXiv 2411.17501). Pure functions, float64.

A problem has n stored samples, each with a gold bit c (correct) and a verifier bit v (accepted). Samples are drawn without replacement
until the first v = 1, at most K of them. The paper takes the mean over 1,000 drawn permutations; here it is the exact mean over all:

    P(some accepted within K) = 1 - C(n - A, K) / C(n, K),   A accepted among the n,

and every accepted sample is the first one equally often, so c = 1 for a share A_c / A of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
COSTS = (0, 1, 2, 4, 8)
"""Costs of a false positive, in benefits of a correct answer, that the paper shows."""


def pass_at_k(n: int, hits: ArrayLike, k: int) -> Array:
    """Unbiased pass@k (Chen et al. 2021, arXiv 2107.03374): 1 - C(n - hits, k) / C(n, k) for each number of hits among n samples."""
    if not 1 <= k <= n:
        raise ValueError(f"k={k} is not between 1 and n={n}")
    misses = n - np.asarray(hits, dtype=float)
    factors = np.clip((misses[..., None] - np.arange(k)) / (n - np.arange(k)), 0, None)
    return 1 - factors.prod(axis=-1)


@dataclass(frozen=True)
class Outcomes:
    """Expected outcomes of resampling with at most K draws, over all orders of the samples."""

    correct: Array
    """(problems, attempts): the first accepted one within K = 1, 2, ... is correct."""
    wrong: Array
    """(problems, attempts): it is wrong."""

    def accuracy(self) -> Array:
        """(attempts,): share of problems answered correctly; without an accepted sample there is no answer."""
        return self.correct.mean(axis=0)

    def reward(self, cost: float) -> Array:
        """(attempts,): U(K), the mean of 1 for a correct answer, -cost for a wrong one and 0 for none."""
        return (self.correct - cost * self.wrong).mean(axis=0)

    def best_attempts(self, cost: float) -> int:
        """K* = argmax U(K), the smallest one; 0 where no K is worth more than not answering."""
        value = self.reward(cost)
        return int(value.argmax()) + 1 if value.max() > 0 else 0

    def false_positives(self) -> float:
        """P(wrong | accepted), the mean over the problems with an accepted sample; NaN where there is none. It depends on no K."""
        right, wrong = self.correct[:, -1], self.wrong[:, -1]
        answered = right + wrong > 0
        return float((wrong[answered] / (right + wrong)[answered]).mean()) if answered.any() else float("nan")

    def false_positives_at(self) -> Array:
        """(attempts,): share of wrong ones among all answers given within K; NaN where there is none."""
        right, wrong = self.correct.sum(axis=0), self.wrong.sum(axis=0)
        return np.divide(wrong, right + wrong, out=np.full(len(right), np.nan), where=right + wrong > 0)


def outcomes(correct: ArrayLike, accepted: ArrayLike, attempts: int) -> Outcomes:
    """The expected outcomes of bits (problems, n) for K = 1 ... attempts."""
    c, v = np.asarray(correct, dtype=bool), np.asarray(accepted, dtype=bool)
    n, given = c.shape[1], v.sum(axis=1)
    some = np.stack([pass_at_k(n, given, k) for k in range(1, attempts + 1)], axis=1)
    share = np.divide((c & v).sum(axis=1), given, out=np.zeros(len(given)), where=given > 0)[:, None]
    return Outcomes(some * share, some * (1 - share))


def ceiling(correct: ArrayLike, accepted: ArrayLike) -> float:
    """Accuracy with an infinite budget: mean over the problems with an accepted sample of P(correct | accepted)."""
    return 1 - outcomes(correct, accepted, np.asarray(correct).shape[1]).false_positives()


@dataclass(frozen=True)
class Types:
    """A population of problem types: success rate r_i and prior p_i of each, under one verifier."""

    success: Sequence[float]
    prior: Sequence[float]
    completeness: float
    """q = P(accept | correct)."""
    soundness: float
    """s = P(reject | wrong)."""

    def reject(self) -> Array:
        """beta_i = (1 - q) r_i + s (1 - r_i)."""
        r = np.asarray(self.success, dtype=float)
        return (1 - self.completeness) * r + self.soundness * (1 - r)

    def gains(self, benefit: float, harm: float) -> Array:
        """V_c a_i + V_f b_i: a_i = q r_i accepts a correct sample, b_i = (1 - r_i)(1 - s) a wrong one."""
        r = np.asarray(self.success, dtype=float)
        return benefit * self.completeness * r + harm * (1 - r) * (1 - self.soundness)

    def posterior(self, attempts: int) -> Array:
        """(attempts, types): pi_i(k), proportional to p_i beta_i^(k - 1); 0 for an attempt that is never made."""
        weights = self._reach(attempts)
        total = weights.sum(axis=1, keepdims=True)
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    def _reach(self, attempts: int) -> Array:
        """(attempts, types): p_i beta_i^(k - 1), the probability of the type and of all k - 1 earlier rejections."""
        return np.asarray(self.prior) * self.reject() ** np.arange(attempts)[:, None]

    def values(self, attempts: int, benefit: float, harm: float, variant: str = "exact") -> Array:
        """(attempts,): expected value of the k-th attempt, sum_i pi_i(k) gains_i times the probability that it is reached.

        That is sum_i p_i beta_i^(k - 1). `variant="notebook"` weighs with the posterior pi_i(k) in place of the prior p_i, as the
        authors' notebook does; it is kept to compare with their figures.
        """
        reach = {"exact": self._reach(attempts), "notebook": self.posterior(attempts) * self.reject() ** np.arange(attempts)[:, None]}
        return self.posterior(attempts) @ self.gains(benefit, harm) * reach[variant].sum(axis=1)

    def reward(self, attempts: int, cost: float) -> Array:
        """(attempts,): U(K), the sum of the values of the first K attempts."""
        return self.values(attempts, 1, -cost).cumsum()
