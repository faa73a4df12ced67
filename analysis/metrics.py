"""Metrics as functions of example weights, so that a bootstrap is one matrix product.

A resample of n examples is a row of counts w with sum n. Each function takes `weights` of shape (draws, n) and the
per-example columns of shape (n,), and returns the metric of every resample, shape (draws,). A resample on which a
metric is undefined (one class only, no variance) counts as 0, as scikit-learn does for F1 and Matthews.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray]
Metric = Callable[[Array, Columns], Array]


def mean_score(weights: Array, columns: Columns) -> Array:
    """Mean of `score`: accuracy, exact match and every other metric that is a mean over examples."""
    return (weights @ columns["score"]) / weights.sum(axis=1, keepdims=columns["score"].ndim > 1)


def log_perplexity(weights: Array, columns: Columns) -> Array:
    """Negative log-likelihood per token in nats: window means `score`, weighted by `tokens`."""
    tokens = columns["tokens"].astype(float)
    return weights @ (columns["score"] * tokens) / (weights @ tokens)


def f1(weights: Array, columns: Columns) -> Array:
    """Binary F1 of class 1: 2 TP / (2 TP + FP + FN)."""
    truth, guess = columns["label"] == 1, columns["prediction"] == 1
    hits = weights @ (truth & guess).astype(float)
    return _ratio(2 * hits, weights @ truth.astype(float) + weights @ guess.astype(float))


def matthews(weights: Array, columns: Columns) -> Array:
    """Matthews correlation for any number of classes, from class totals (R_K of Gorodkin 2004)."""
    label, prediction = columns["label"], columns["prediction"]
    classes = np.unique(np.concatenate([label, prediction]))
    truth = weights @ (label[:, None] == classes).astype(float)
    guess = weights @ (prediction[:, None] == classes).astype(float)
    right, total = weights @ (label == prediction).astype(float), weights.sum(axis=1)
    covariance = right * total - (truth * guess).sum(axis=1)
    spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (guess**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


def pearson(weights: Array, columns: Columns) -> Array:
    """Pearson correlation of `label` and `prediction`."""
    return _correlation(weights, columns["label"].astype(float)[None], columns["prediction"].astype(float)[None])


def spearman(weights: Array, columns: Columns) -> Array:
    """Spearman correlation: Pearson correlation of the mid-ranks within each resample."""
    return _correlation(weights, _ranks(weights, columns["label"]), _ranks(weights, columns["prediction"]))


def average(*metrics: Metric) -> Metric:
    """The mean of several metrics of the same predictions (GLUE reports STS-B so)."""
    return lambda weights, columns: np.mean([metric(weights, columns) for metric in metrics], axis=0)


def _ranks(weights: Array, values: NDArray) -> Array:
    """Mid-ranks of the distinct values in each resample, shape (draws, n)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) != 0]))
    totals = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(totals, axis=1) - (totals - 1) / 2
    return middle[:, np.searchsorted(values[order][starts], values)]


def _correlation(weights: Array, x: Array, y: Array) -> Array:
    """Weighted correlation per resample; `x` and `y` have shape (draws, n) or (1, n)."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    covariance = (weights * x * y).sum(axis=1)
    return _ratio(covariance, np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)))


def _ratio(top: Array, bottom: Array) -> Array:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


METRICS: dict[str, Metric] = {
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "perplexity": log_perplexity,
    "word_perplexity": log_perplexity,
    "pearson_spearman": average(pearson, spearman),
}
"""Metrics that are not the mean of `score`; perplexities are compared on the log scale."""

LOG_SCALE = frozenset({"perplexity", "word_perplexity"})


def metric_function(name: str) -> Metric:
    """The function of a metric; anything not in `METRICS` is the mean of `score`."""
    return METRICS.get(name, mean_score)


def evaluated(name: str, weights: Array, runs: Sequence[Columns]) -> Array:
    """A metric of several runs on the same resamples, shape (runs, draws); means of scores as one matrix product."""
    if metric_function(name) is mean_score:
        return mean_score(weights, {"score": np.stack([run["score"] for run in runs], axis=1)}).T
    return np.stack([metric_function(name)(weights, run) for run in runs])


def to_scale(name: str, value: float) -> float:
    """A recorded value on the scale on which differences are taken (log for perplexity)."""
    return float(np.log(value)) if name in LOG_SCALE else float(value)
