"""Metrics against closed forms written here, undefined cases, and the majority-class baselines of GLUE's dev sets."""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import rankdata

from tasks.metrics import METRICS, accuracy, compute, f1, matthews, pearson, pearson_spearman, spearman


@pytest.fixture(params=range(5))
def classes(request):
    generator = np.random.default_rng(request.param)
    return generator.integers(0, 2, 200), generator.integers(0, 2, 200)


@pytest.fixture(params=range(5))
def values(request):
    generator = np.random.default_rng(request.param)
    labels = generator.integers(0, 11, 100) / 2
    return labels, labels + generator.normal(size=100).round(1)


def counts(labels, predictions):
    tp = int(((labels == 1) & (predictions == 1)).sum())
    tn = int(((labels == 0) & (predictions == 0)).sum())
    fp = int(((labels == 0) & (predictions == 1)).sum())
    fn = int(((labels == 1) & (predictions == 0)).sum())
    return tp, tn, fp, fn


def test_class_metrics_equal_their_closed_forms(classes):
    tp, tn, fp, fn = counts(*classes)
    assert accuracy(*classes) == pytest.approx((tp + tn) / 200, abs=1e-12)
    assert f1(*classes) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews(*classes) == pytest.approx((tp * tn - fp * fn) / root, abs=1e-12)


def test_correlations_equal_their_closed_forms_with_ties(values):
    labels, predictions = values
    r = np.corrcoef(labels, predictions)[0, 1]
    rho = np.corrcoef(rankdata(labels), rankdata(predictions))[0, 1]
    assert pearson(labels, predictions) == pytest.approx(r, abs=1e-12)
    assert spearman(labels, predictions) == pytest.approx(rho, abs=1e-12)
    assert pearson_spearman(labels, predictions) == pytest.approx((r + rho) / 2, abs=1e-12)


def test_f1_counts_class_one_and_is_not_symmetric_in_the_classes():
    assert f1([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(2 / 3)
    assert f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman", "pearson_spearman"])
def test_a_constant_prediction_scores_zero_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS[name]([0, 1, 1, 0], [0, 0, 0, 0]) == 0.0


def test_scores_that_are_not_finite_make_every_metric_nan():
    metrics = compute(["accuracy", "f1"], [0, 1], [0, 1], [0.3, math.nan])
    assert set(metrics) == {"accuracy", "f1"} and all(math.isnan(v) for v in metrics.values())
    assert compute(["accuracy", "f1"], [0, 1], [0, 1], [0.3, 0.4]) == {"accuracy": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("task", "metric", "expected"),
    [
        ("rte", "accuracy", 52.7),
        ("mrpc", "accuracy", 68.4),
        ("sst2", "accuracy", 50.9),
        ("qnli", "accuracy", 50.5),
        ("cola", "matthews", 0.0),
    ],
)
def test_majority_class_baselines_of_the_dev_sets(folder, task, metric, expected):
    labels = np.array(folder.rows(f"glue/{task}", "validation").data["label"][:])
    majority = np.bincount(labels).argmax()
    assert round(100 * METRICS[metric](labels, np.full_like(labels, majority)), 1) == expected
