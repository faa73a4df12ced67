"""Methods across tasks: average ranks with Friedman's test and Nemenyi's critical difference; wins, ties and losses.

After Demsar (2006, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7). A task is one block: the ranks of its
row means. Few tasks make the chi-square form of Friedman's test poor, so its p value comes from permuting the ranks within tasks.
A win is a significant paired difference within the task, Holm over all pairs of its column; everything else is a tie.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions

from analysis.metrics import Array
from analysis.stats import ENOUGH_SEEDS, LEVEL, NotComparable, Sample, holm, pooled_seed_variance, satterthwaite, variance_of_differences

PERMUTATIONS = 9999


@dataclass(frozen=True)
class Standing:
    """One method across the tasks. Wins, ties and losses count (other method, task) pairs."""

    label: str
    rank: float
    """Mean over the tasks of its rank, 1 = best; equal means share theirs."""
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class Ranking:
    """Methods that were measured on all tasks with the same seeds, the best first."""

    tasks: tuple[str, ...]
    standings: tuple[Standing, ...]
    p: float | None
    """Friedman's test of equal ranks, by permutation; None for two methods, where it is the pair's own comparison."""
    critical_difference: float
    """Nemenyi at 5 %: mean ranks that differ by less are not told apart."""
    groups: tuple[tuple[str, ...], ...]
    """The largest sets of methods that are not told apart by it, two methods or more each."""


def ranking(columns: Mapping[str, Sequence[Sample]], higher_is_better: Mapping[str, bool]) -> Ranking:
    """The ranking of the rows of several tasks: per task the samples of the same labels, in the same order.

    Raises `NotComparable` where the seeds of two rows differ, or the examples of a task.
    """
    labels = [row.label for row in next(iter(columns.values()))]
    signs = [1.0 if higher_is_better[task] else -1.0 for task in columns]
    scores = np.array([[sign * row.values.mean() for row in column] for sign, column in zip(signs, columns.values(), strict=True)])
    beaten = np.stack([outcomes(column, sign) for sign, column in zip(signs, columns.values(), strict=True)])
    ranks = ranks_of(scores)
    mean, distance = ranks.mean(axis=0), critical_difference(len(labels), len(columns))
    order = np.argsort(mean, kind="stable")
    standings = tuple(_standing(labels[i], mean[i], beaten[:, i, :]) for i in order)
    groups = cliques([(labels[i], mean[i]) for i in order], distance)
    return Ranking(tuple(columns), standings, friedman(ranks)[1] if len(labels) > 2 else None, distance, groups)


def _standing(label: str, rank: float, outcome: Array) -> Standing:
    """`outcome` (tasks, methods) of one method against each; against itself it is no tie."""
    wins, losses = int((outcome > 0).sum()), int((outcome < 0).sum())
    return Standing(label, float(rank), wins, outcome.shape[0] * (outcome.shape[1] - 1) - wins - losses, losses)


def ranks_of(scores: Array) -> Array:
    """Ranks (tasks, methods) of scores (tasks, methods) of which larger is better; 1 = best, equal scores share their mean rank."""
    return distributions.rankdata(-np.asarray(scores), axis=1)


def friedman(ranks: Array, permutations: int = PERMUTATIONS) -> tuple[float, float]:
    """Friedman's statistic (corrected for ties) of ranks (tasks, methods), and its p value over permutations within the tasks.

    The statistic grows with the sum of squared rank sums alone, so that is what is permuted. All methods equal: (0, 1).
    """
    tasks, methods = ranks.shape
    spread = (ranks**2).sum() - tasks * methods * (methods + 1) ** 2 / 4
    if spread == 0:
        return 0.0, 1.0
    centre = tasks * (methods + 1) / 2
    statistic = (methods - 1) * ((ranks.sum(axis=0) - centre) ** 2).sum() / spread
    generator = np.random.default_rng([tasks, methods, permutations])
    sums = np.zeros((permutations, methods))
    for row in ranks:
        sums += generator.permuted(np.broadcast_to(row, sums.shape), axis=1)
    drawn = (methods - 1) * ((sums - centre) ** 2).sum(axis=1) / spread
    return float(statistic), float((1 + (drawn >= statistic - 1e-9).sum()) / (permutations + 1))


def critical_difference(methods: int, tasks: int) -> float:
    """Nemenyi (1963): q / sqrt(2) * sqrt(k (k + 1) / 6N), q the studentized range of k means with infinite degrees of freedom."""
    q = distributions.studentized_range.ppf(LEVEL, methods, math.inf)
    return float(q / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * tasks)))


def cliques(ranks: Sequence[tuple[str, float]], distance: float) -> tuple[tuple[str, ...], ...]:
    """The maximal runs of (label, mean rank), sorted by rank, whose ends differ by no more than `distance`; single ones left out."""
    found: list[tuple[int, int]] = []
    for start, (_, rank) in enumerate(ranks):
        end = max(i for i, (_, other) in enumerate(ranks) if other - rank <= distance)
        if end > start and (not found or end > found[-1][1]):
            found.append((start, end))
    return tuple(tuple(label for label, _ in ranks[start : end + 1]) for start, end in found)


def outcomes(column: Sequence[Sample], sign: float = 1.0) -> Array:
    """Shape (rows, rows): 1 where a row is significantly better than the other, -1 where worse, 0 for a tie (Holm over all pairs)."""
    values, p = pairwise(column)
    upper = np.triu_indices(len(column), 1)
    told = np.zeros_like(p)
    told[upper] = np.array(holm(p[upper])) <= 1 - LEVEL
    return np.sign(sign * values) * (told + told.T)


def pairwise(column: Sequence[Sample]) -> tuple[Array, Array]:
    """Mean difference and uncorrected p value of every pair of rows, as `analysis.stats.compare` gives them; shape (rows, rows).

    The p value of a pair needs the variances alone, and those of all pairs are two covariance matrices.
    """
    seeds = _common_seeds(column)
    values = np.stack([np.broadcast_to(row.values, seeds) if row.deterministic else row.values for row in column])
    draws = np.stack([row.draws.mean(axis=0) for row in column])
    fixed = np.array([row.deterministic for row in column])
    difference = values.mean(axis=1)[:, None] - values.mean(axis=1)[None, :]
    v_x = variance_of_differences(draws)
    v_s, df = _seed_part(column, values, fixed, seeds)
    return difference, _p_values(difference, v_x, v_s, df)


def _common_seeds(column: Sequence[Sample]) -> int:
    """How many seeds the rows have; `NotComparable` unless they are the same, on the same examples."""
    random = [row for row in column if not row.deterministic]
    for row in column:
        if row.examples != column[0].examples:
            raise NotComparable(f"{row.label} and {column[0].label} were not measured on the same examples")
    for row in random:
        if row.seeds != random[0].seeds:
            raise NotComparable(f"{row.label} and {random[0].label} have other seeds")
    return len(random[0].seeds) if random else 1


def _seed_part(column: Sequence[Sample], values: Array, fixed: Array, seeds: int) -> tuple[Array, float]:
    """Seed variance of each pair's difference, and its degrees of freedom."""
    if seeds >= ENOUGH_SEEDS:
        return variance_of_differences(values) / seeds, seeds - 1
    pooled = pooled_seed_variance(column)
    if pooled is None:
        return np.zeros((len(column), len(column))), 1
    noisy = (~fixed).astype(float)
    return pooled.value * (noisy[:, None] + noisy[None, :]) / seeds, pooled.df


def _p_values(difference: Array, v_x: Array, v_s: Array, df_s: float) -> Array:
    error = np.sqrt(v_x + v_s)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * distributions.t.sf(np.abs(difference) / error, np.vectorize(satterthwaite)(v_x, v_s, df_s))
    return np.where(error > 0, p, (difference == 0).astype(float))
