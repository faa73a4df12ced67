"""Paired comparisons of methods that were measured on the same seeds and the same examples.

Two sources of uncertainty, kept apart:

- *examples*: bootstrap over the evaluation examples. All seeds of both methods are scored on the same resample, since the
  same examples were evaluated everywhere; its variance is V_x.
- *seeds*: with at least `ENOUGH_SEEDS` seeds a hierarchical bootstrap resamples the paired seeds and, within each draw,
  the examples (Owen 2007, "The pigeonhole bootstrap", on the whole conservative). With fewer, n seeds say too
  little about their own spread: V_s = pooled within-column seed variance * (1/n_a + 1/n_b), and the interval is
  difference +- t * sqrt(V_x + V_s), degrees of freedom after Satterthwaite (1946). Seed-by-example interaction is in both
  terms, so the interval is rather too wide than too narrow.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from analysis.metrics import Array, Columns, evaluated

ENOUGH_SEEDS = 5
DRAWS = 2000
LEVEL = 0.95
POWER = 0.8
CHUNK = 4_000_000
"""Most weights held at once; larger test sets are bootstrapped in pieces."""


class NotComparable(ValueError):
    """Two rows that share no seed or were not measured on the same examples; the message says which."""


@dataclass(frozen=True)
class Sample:
    """One row of one column: a method's metric per seed, on the data and on `DRAWS` resamples of the examples."""

    label: str
    seeds: tuple[int, ...]
    values: Array
    """Shape (seeds,), on the comparison scale (log for perplexity)."""
    draws: Array
    """Shape (seeds, draws): the metric of each seed on each resample; resample b is the same for every row."""
    examples: tuple[str, ...]
    deterministic: bool
    """No seed can change the numbers: its one run stands for every seed and adds no seed variance."""
    scores: Array
    """Shape (seeds, n): per-example scores, for the exact test."""


@dataclass(frozen=True)
class SeedVariance:
    """Variance between seeds, pooled over the rows of a column; `df` = sum of (seeds - 1)."""

    value: float
    df: int


@dataclass(frozen=True)
class Difference:
    """Mean over seeds of a - b, on the comparison scale, with its interval and how that was made."""

    a: str
    b: str
    value: float
    low: float
    high: float
    p: float
    """Two-sided, not corrected for multiple comparisons."""
    seeds: int
    examples: int
    how: str
    """`hierarchical bootstrap`, `pooled seed variance` or `examples only` (no seed spread is known)."""


Predictions = Mapping[str, ArrayLike]
"""A per-example table by its columns (a data frame is one); they are as in `harness.record.Result.predictions`."""


@lru_cache(maxsize=2)
def resamples(n: int, draws: int) -> NDArray[np.uint16]:
    """Counts of each of `n` examples in each resample, shape (draws, n); the same for every call with the same sizes."""
    generator = np.random.default_rng([n, draws])
    counts = np.empty((draws, n), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(0, n, size=n), minlength=n)
    return counts


def sample(label: str, metric: str, predictions: Mapping[int, Predictions], deterministic: bool = False) -> Sample:
    """Bootstrap one row: `predictions` maps a seed to its per-example table."""
    made = samples(metric, {label: (predictions, deterministic)})[label]
    if isinstance(made, NotComparable):
        raise made
    return made


def samples(metric: str, rows: Mapping[str, tuple[Mapping[int, Predictions], bool]]) -> dict[str, Sample | NotComparable]:
    """Bootstrap rows of one column at once: label -> predictions by seed, deterministic; as `sample`, or why there is none."""
    found: dict[str, Sample | NotComparable] = {}
    aligned: dict[int, list[tuple[str, tuple[str, ...], dict[int, Columns]]]] = {}
    for label, (predictions, _) in rows.items():
        tables = {seed: _by_example(predictions[seed]) for seed in sorted(predictions)}
        examples = next(iter(tables.values()))[0]
        if other := [seed for seed, (keys, _) in tables.items() if keys != examples]:
            found[label] = NotComparable(f"{label}: seed {other[0]} was not measured on the same examples as the other seeds")
        else:
            aligned.setdefault(len(examples), []).append((label, examples, {seed: columns for seed, (_, columns) in tables.items()}))
    for same in aligned.values():
        values, draws = _bootstrap(metric, [columns for _, _, seeds in same for columns in seeds.values()])
        end = np.cumsum([len(seeds) for _, _, seeds in same])
        for (label, examples, seeds), stop in zip(same, end, strict=True):
            own = slice(stop - len(seeds), stop)
            scores = np.stack([columns["score"].astype(float) for columns in seeds.values()])
            found[label] = Sample(label, tuple(seeds), values[own], draws[own], examples, rows[label][1], scores)
    return found


def _by_example(table: Predictions) -> tuple[tuple[str, ...], dict[str, NDArray]]:
    """Example keys in order, and the columns in that order."""
    keys, order = _in_order(tuple(map(str, table["example"])))
    return keys, {name: np.asarray(table[name])[order] for name in table if name != "example"}


@lru_cache(maxsize=64)
def _in_order(examples: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """Keys of examples, repeated documents numbered so that two methods' rows pair up: sorted, and where each stands."""
    seen: Counter[str] = Counter()
    keys = []
    for example in examples:
        keys.append(f"{example}#{seen[example]}")
        seen[example] += 1
    order = np.argsort(keys)
    return tuple(keys[i] for i in order), order


def _bootstrap(metric: str, seeds: Sequence[Columns]) -> tuple[Array, Array]:
    """The metric of each seed on all examples, shape (seeds,), and on each resample, shape (seeds, draws)."""
    n = len(seeds[0]["score"])
    whole = evaluated(metric, np.ones((1, n)), seeds)[:, 0]
    step = max(1, CHUNK // n)
    return whole, np.concatenate([evaluated(metric, _counts(n, DRAWS, at, at + step), seeds) for at in range(0, DRAWS, step)], axis=1)


@lru_cache(maxsize=2)
def _counts(n: int, draws: int, start: int, stop: int) -> Array:
    return resamples(n, draws)[start:stop].astype(float)


def pooled_seed_variance(column: Sequence[Sample]) -> SeedVariance | None:
    """Within-row variance between seeds, pooled over the rows that have a spread; None where no row has two seeds."""
    rows = [row.values for row in column if not row.deterministic and len(row.seeds) > 1]
    df = sum(len(values) - 1 for values in rows)
    if df == 0:
        return None
    return SeedVariance(sum(((values - values.mean()) ** 2).sum() for values in rows) / df, df)


def compare(a: Sample, b: Sample, pooled: SeedVariance | None) -> Difference:
    """The paired difference a - b over the seeds that both have; `pooled` comes from the column of both.

    Raises `NotComparable` if the examples differ or no seed is shared.
    """
    if a.examples != b.examples:
        raise NotComparable(f"{a.label} and {b.label} were not measured on the same examples")
    left, right, seeds = _paired(a, b)
    values = a.values[left] - b.values[right]
    draws = a.draws[left] - b.draws[right]
    n, noisy = len(values), not (a.deterministic and b.deterministic)
    if noisy and n >= ENOUGH_SEEDS:
        return _difference(a, b, seeds, *_hierarchical(values, draws), "hierarchical bootstrap")
    v_x = draws.mean(axis=0).var(ddof=1)
    seed_part = sum(0.0 if row.deterministic else 1.0 / n for row in (a, b))
    if pooled is None or not noisy:
        how = "examples only"
        return _difference(a, b, seeds, *_symmetric(values.mean(), v_x, 0.0, 1), how)
    return _difference(a, b, seeds, *_symmetric(values.mean(), v_x, pooled.value * seed_part, pooled.df), "pooled seed variance")


def _paired(a: Sample, b: Sample) -> tuple[list[int], list[int], int]:
    """Indices of the paired runs of a and b, and how many seeds they are; a deterministic run is paired with every seed."""
    if a.deterministic or b.deterministic:
        n = max(len(a.seeds) if not a.deterministic else 1, len(b.seeds) if not b.deterministic else 1)
        return [0] * n if a.deterministic else list(range(n)), [0] * n if b.deterministic else list(range(n)), n
    shared = [seed for seed in a.seeds if seed in b.seeds]
    if not shared:
        raise NotComparable(f"{a.label} and {b.label} share no seed")
    return [a.seeds.index(s) for s in shared], [b.seeds.index(s) for s in shared], len(shared)


def _difference(a: Sample, b: Sample, seeds: int, value: float, low: float, high: float, p: float, how: str) -> Difference:
    return Difference(a.label, b.label, float(value), float(low), float(high), float(p), seeds, len(a.examples), how)


def _symmetric(value: float, v_x: float, v_s: float, df_s: int) -> tuple[float, float, float, float]:
    """Estimate, interval and p value from the example variance and a seed variance known with `df_s` degrees of freedom."""
    error, df = math.sqrt(v_x + v_s), satterthwaite(v_x, v_s, df_s)
    half = special.stdtrit(df, 0.5 + LEVEL / 2) * error
    return value, value - half, value + half, _p_value(value, error, df)


def satterthwaite(v_x: float, v_s: float, df_s: float) -> float:
    """Degrees of freedom of V_x + V_s, where V_x is taken as known (thousands of resamples of hundreds of examples)."""
    return df_s * ((v_x + v_s) / v_s) ** 2 if v_s > 0 else math.inf


def _p_value(value: float, error: float, df: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * special.stdtr(df, -abs(value) / error)


def _hierarchical(values: Array, draws: Array) -> tuple[float, float, float, float]:
    """Hierarchical bootstrap of paired seeds, then examples; `values` (seeds,), `draws` (seeds, draws).

    Percentiles of a bootstrap of few seeds are too narrow (the resampled variance is (n-1)/n of the sample's, and a
    normal quantile is used for t): the percentile interval is stretched about the estimate by
    k = t_df * sqrt(V_x + V_s) / (z * sd(bootstrap)), in the spirit of the expanded percentile interval of
    Hesterberg (2015, "What Teachers Should Know About the Bootstrap").
    """
    n, total = draws.shape
    resampled = (_seed_weights(n, total) * draws.T).sum(axis=1)
    v_x, v_s = draws.mean(axis=0).var(ddof=1), values.var(ddof=1) / n
    error, df = math.sqrt(v_x + v_s), satterthwaite(v_x, v_s, n - 1)
    spread = resampled.std(ddof=1)
    k = max(1.0, special.stdtrit(df, 0.5 + LEVEL / 2) * error / (special.ndtri(0.5 + LEVEL / 2) * spread)) if spread > 0 else 1.0
    value = values.mean()
    low, high = value + k * (np.quantile(resampled, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]) - value)
    return value, low, high, _p_value(value, error, df)


@lru_cache(maxsize=8)
def _seed_weights(n: int, total: int) -> Array:
    """Share of each of `n` seeds in each resample, shape (total, n)."""
    return np.random.default_rng([n, total, 1]).multinomial(n, np.full(n, 1 / n), size=total) / n


def minimum_detectable_difference(column: Sequence[Sample], pooled: SeedVariance | None) -> float | None:
    """The smallest true difference of two row means that is found with 80 % power at two-sided 5 %.

    MDD = (t_{0.975, df} + t_{0.8, df}) * sqrt(V_x + 2 V_seed / n): V_seed the pooled seed variance, n the fewest seeds of a
    row, V_x the median over pairs of rows of the paired example variance. A column of deterministic rows has V_seed = 0.
    None where it cannot be known: fewer than two comparable rows, or random rows of one seed each.
    """
    comparable = [row for row in column if row.examples == column[0].examples]
    random = [row for row in comparable if not row.deterministic]
    if len(comparable) < 2 or (random and pooled is None):
        return None
    pairs = np.triu_indices(len(comparable), 1)
    v_x = float(np.median(variance_of_differences(np.stack([row.draws.mean(axis=0) for row in comparable]))[pairs]))
    v_s = 2 * pooled.value / min(len(row.seeds) for row in random) if random and pooled else 0.0
    df = satterthwaite(v_x, v_s, pooled.df if pooled else 1)
    return float((special.stdtrit(df, 0.5 + LEVEL / 2) + special.stdtrit(df, POWER)) * math.sqrt(v_x + v_s))


def variance_of_differences(rows: Array) -> Array:
    """The variance of a - b, with n - 1, for all pairs of `rows` (rows, n); shape (rows, rows)."""
    covariance = np.atleast_2d(np.cov(rows, ddof=1))
    own = np.diag(covariance)
    return np.maximum(own[:, None] + own[None, :] - 2 * covariance, 0.0)


def not_told_from_best(column: Sequence[Sample], higher_is_better: bool) -> tuple[int, set[int]]:
    """Index of the best row, and of the rows whose difference to it is not significant (Holm at 5 % over the column).

    The two together hold the truly best row in 95 % of columns or more; of many equal rows, some may be left out more often than that,
    since the best of them is the luckiest one. All rows must be comparable (`NotComparable`). With one row the set is empty.
    """
    means = [row.values.mean() if higher_is_better else -row.values.mean() for row in column]
    best = int(np.argmax(means))
    pooled = pooled_seed_variance(column)
    others = [i for i in range(len(column)) if i != best]
    adjusted = holm([compare(column[i], column[best], pooled).p for i in others])
    return best, {i for i, p in zip(others, adjusted, strict=True) if p > 1 - LEVEL}


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of Holm (1979): the i-th smallest of m times m - i + 1, made monotone, at most 1."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def mcnemar(a: Sample, b: Sample) -> float:
    """Exact two-sided McNemar test (binomial on the discordant examples) for one seed pair of a 0/1 metric.

    Raises `NotComparable` for other scores, more than one seed pair, or other examples.
    """
    if a.examples != b.examples:
        raise NotComparable(f"{a.label} and {b.label} were not measured on the same examples")
    left, right, seeds = _paired(a, b)
    if seeds != 1:
        raise NotComparable("McNemar's test is for one seed pair")
    x, y = a.scores[left[0]], b.scores[right[0]]
    if not np.isin(np.concatenate([x, y]), (0, 1)).all():
        raise NotComparable("McNemar's test is for scores of 0 and 1")
    only_a, only_b = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)
