"""Metrics of GLUE (Wang et al. 2018, arXiv 1804.07461, table 1), through scikit-learn and scipy.

The imports are inside the functions: scikit-learn alone costs more than a second.
"""

from collections.abc import Callable, Sequence

import numpy as np

Values = Sequence[float] | np.ndarray


def accuracy(labels: Values, predictions: Values) -> float:
    """Fraction of equal entries."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


def f1(labels: Values, predictions: Values) -> float:
    """F1 of class 1; 0 where class 1 is neither a label nor predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0.0))


def matthews(labels: Values, predictions: Values) -> float:
    """Matthews correlation; 0 where labels or predictions are constant."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def pearson(labels: Values, predictions: Values) -> float:
    """Linear correlation; undefined for a constant, which has no relation to show, and 0 then."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(labels, predictions) else float(pearsonr(labels, predictions).statistic)


def spearman(labels: Values, predictions: Values) -> float:
    """Rank correlation, ties with their mean rank; 0 for a constant, as `pearson`."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(labels, predictions) else float(spearmanr(labels, predictions).statistic)


def pearson_spearman(labels: Values, predictions: Values) -> float:
    """Mean of the two correlations, the single STS-B number of the GLUE leaderboard."""
    return (pearson(labels, predictions) + spearman(labels, predictions)) / 2


def _constant(*columns: Values) -> bool:
    return any(np.ptp(np.asarray(column)) == 0 for column in columns)


METRICS: dict[str, Callable[[Values, Values], float]] = {
    fn.__name__: fn for fn in (accuracy, f1, matthews, pearson, spearman, pearson_spearman)
}


def compute(names: Sequence[str], labels: Values, predictions: Values, scores: Values) -> dict[str, float]:
    """The named metrics; all NaN where a model's `scores` are not finite, so that divergence never looks like a result."""
    if not np.isfinite(np.asarray(scores, dtype=float)).all():
        return dict.fromkeys(names, float("nan"))
    return {name: METRICS[name](labels, predictions) for name in names}
