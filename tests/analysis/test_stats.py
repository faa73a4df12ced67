"""Statistics against scipy, scikit-learn and hand-worked numbers, and the coverage of the intervals by simulation."""

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sklearn_metrics

from analysis import stats
from analysis.metrics import METRICS, metric_function

N = 60


def table(rng: np.random.Generator, n: int = N, classes: int = 2) -> pd.DataFrame:
    label = rng.integers(0, classes, n)
    prediction = np.where(rng.random(n) < 0.7, label, rng.integers(0, classes, n))
    return pd.DataFrame(
        {
            "example": [f"e{i}" for i in range(n)],
            "score": (label == prediction).astype(float),
            "label": label,
            "prediction": prediction,
            "tokens": rng.integers(5, 50, n),
        }
    )


def gauss(rng: np.random.Generator, n: int = N) -> pd.DataFrame:
    label = np.round(rng.normal(size=n), 1)
    return table(rng, n).assign(label=label, prediction=np.round(label + rng.normal(size=n), 1))


REFERENCE = {
    "f1": lambda t: sklearn_metrics.f1_score(t.label, t.prediction, zero_division=0),
    "matthews": lambda t: sklearn_metrics.matthews_corrcoef(t.label, t.prediction),
    "pearson": lambda t: scipy_stats.pearsonr(t.label, t.prediction)[0],
    "spearman": lambda t: scipy_stats.spearmanr(t.label, t.prediction)[0],
    "accuracy": lambda t: sklearn_metrics.accuracy_score(t.label, t.prediction),
    "perplexity": lambda t: math.log(math.exp((t.score * t.tokens).sum() / t.tokens.sum())),
    "word_perplexity": lambda t: math.log(math.exp((t.score * t.tokens).sum() / t.tokens.sum())),
    "pearson_spearman": lambda t: (REFERENCE["pearson"](t) + REFERENCE["spearman"](t)) / 2,
}


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_metric_of_every_resample_equals_the_metric_of_the_repeated_rows(name):
    rng = np.random.default_rng(1)
    frame = gauss(rng) if "earman" in name or "earson" in name else table(rng, classes=3 if name == "matthews" else 2)
    counts = stats.resamples(N, 20).astype(float)
    ours = metric_function(name)(counts, {c: frame[c].to_numpy() for c in frame})
    theirs = [REFERENCE[name](frame.loc[frame.index.repeat(row.astype(int))]) for row in counts]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_every_special_metric_has_a_reference_here():
    assert set(METRICS) <= set(REFERENCE)


def test_a_metric_that_is_undefined_counts_as_zero():
    frame = pd.DataFrame({"label": [0, 0], "prediction": [0, 0], "score": [1.0, 1.0]})
    columns = {c: frame[c].to_numpy() for c in frame}
    assert metric_function("f1")(np.ones((1, 2)), columns)[0] == 0
    assert metric_function("matthews")(np.ones((1, 2)), columns)[0] == 0


def test_resamples_are_multinomial_and_repeatable():
    counts = stats.resamples(40, 2000)
    assert (counts.sum(axis=1) == 40).all()
    np.testing.assert_allclose(counts.mean(), 1.0)
    np.testing.assert_allclose(counts.var(), 1 - 1 / 40, rtol=0.02)
    assert (counts == stats.resamples.__wrapped__(40, 2000)).all()


def test_bootstrap_variance_of_a_mean_is_the_textbook_one():
    frame = table(np.random.default_rng(2), 500)
    row = stats.sample("a", "accuracy", {0: frame})
    np.testing.assert_allclose(row.draws[0].var(), frame.score.var(ddof=0) / 500, rtol=0.1)
    assert row.values[0] == pytest.approx(frame.score.mean())


def test_large_test_sets_in_pieces_give_the_same_draws(monkeypatch):
    frame = table(np.random.default_rng(3), 200)
    whole = stats.sample("a", "matthews", {0: frame}).draws
    monkeypatch.setattr(stats, "CHUNK", 200 * 7)
    np.testing.assert_allclose(stats.sample("a", "matthews", {0: frame}).draws, whole)


def test_examples_pair_whatever_their_order_and_however_often_they_repeat():
    frame = table(np.random.default_rng(4), 30)
    frame.loc[29, "example"] = "e0"
    a = stats.sample("a", "accuracy", {0: frame}, deterministic=True)
    b = stats.sample("b", "accuracy", {0: frame.iloc[np.r_[7:30, 0:7]]}, deterministic=True)
    assert a.examples == b.examples and len(set(a.examples)) == 30
    difference = stats.compare(a, stats.sample("b", "accuracy", {0: frame}, deterministic=True), None)
    assert (difference.value, difference.low, difference.high, difference.p) == (0, 0, 0, 1)


def test_other_examples_or_no_shared_seed_are_refused_by_name():
    rng = np.random.default_rng(5)
    frame = table(rng)
    a = stats.sample("a", "accuracy", {0: frame})
    with pytest.raises(stats.NotComparable, match="a and b were not measured on the same examples"):
        stats.compare(a, stats.sample("b", "accuracy", {0: frame.iloc[1:]}), None)
    with pytest.raises(stats.NotComparable, match="a and b share no seed"):
        stats.compare(a, stats.sample("b", "accuracy", {1: frame}), None)
    with pytest.raises(stats.NotComparable, match="seed 1"):
        stats.sample("b", "accuracy", {0: frame, 1: frame.iloc[1:]})


def simulated(rng, label, effect, seeds, n, difficulty, seed_sd, noise=0.3):
    """Scores = effect + difficulty of the example + seed effect + noise: the components of variance are known."""
    shared = effect + difficulty
    names = [f"e{i}" for i in range(n)]
    frames = {s: pd.DataFrame({"example": names, "score": shared + rng.normal(0, seed_sd) + rng.normal(0, noise, n)}) for s in range(seeds)}
    return stats.sample(label, "score", frames)


RESAMPLES = 600


@cache
def shares(n):
    """Weight of each of `n` examples in each resample, shape (n, resamples)."""
    return stats.resamples(n, RESAMPLES).T / n


def drawn(rng, label, effect, seeds, seed_sd, noise=0.0, example_sd=0.2, n=100):
    """A row of normal effects of examples (its own), seeds and both; no data frame, so that many can be drawn."""
    scores = effect + rng.normal(0, example_sd, n) + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, noise, (seeds, n))
    draws = scores @ shares(n)
    return stats.Sample(label, tuple(range(seeds)), scores.mean(axis=1), draws, ("x",) * n, False, scores)


def coverage(seeds, seed_sd, noise=0.0, others=None, trials=500, effect=0.05):
    """Share of intervals of the first two of six rows that hold their true difference; the other rows have `others` seeds."""
    rng = np.random.default_rng([seeds, int(1000 * seed_sd)])
    inside = 0
    for _ in range(trials):
        column = [drawn(rng, str(i), effect * (i == 0), seeds if i < 2 else others or seeds, seed_sd, noise) for i in range(6)]
        found = stats.compare(column[0], column[1], stats.pooled_seed_variance(column))
        inside += found.low <= effect <= found.high
    return inside / trials


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "noise", "others"),
    [
        (1, 0.0, 0.0, None), (1, 0.05, 0.0, 3), (2, 0.05, 0.0, None), (3, 0.05, 0.0, None), (3, 0.2, 0.0, None),
        (3, 0.01, 0.0, None), (5, 0.05, 0.0, None), (10, 0.05, 0.0, None), (3, 0.05, 0.3, None), (5, 0.0, 0.3, None),
    ],
)  # fmt: skip
def test_intervals_cover_the_true_difference_as_often_as_they_say(seeds, seed_sd, noise, others):
    """Nominal 95 %; 500 intervals have a standard error of 1 %. What seeds and examples do together counts twice: wider, never narrower."""
    assert 0.92 <= coverage(seeds, seed_sd, noise, others) <= (0.98 if noise == 0 else 1.0)


def test_an_interval_without_seed_variance_would_not_cover(monkeypatch):
    """The simulation can tell: leaving the seed variance out loses coverage."""
    monkeypatch.setattr(stats, "pooled_seed_variance", lambda _: stats.SeedVariance(0.0, 1))
    assert coverage(3, 0.1) < 0.85


def test_pooled_interval_is_the_documented_formula():
    rng = np.random.default_rng(7)
    easy = rng.normal(0, 0.2, 100)
    column = [simulated(rng, str(i), 0.1 * i, 3, 100, easy, 0.1) for i in range(4)]
    pooled = stats.pooled_seed_variance(column)
    assert pooled.value == pytest.approx(np.mean([row.values.var(ddof=1) for row in column])) and pooled.df == 8
    found = stats.compare(column[3], column[0], pooled)
    v_x = (column[3].draws - column[0].draws).mean(axis=0).var(ddof=1)
    v_s = pooled.value * 2 / 3
    df = 8 * (v_x + v_s) ** 2 / v_s**2
    low, high = scipy_stats.t.interval(0.95, df, loc=found.value, scale=math.sqrt(v_x + v_s))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(found.value / math.sqrt(v_x + v_s), df))
    assert (found.seeds, found.examples, found.how) == (3, 100, "pooled seed variance")


def test_hierarchical_interval_of_pure_seed_noise_is_the_paired_t_interval():
    n, seeds = 50, 8
    rng = np.random.default_rng(8)
    names = [f"e{i}" for i in range(n)]
    frames = [{s: pd.DataFrame({"example": names, "score": np.full(n, rng.normal())}) for s in range(seeds)} for _ in range(2)]
    a, b = (stats.sample(label, "score", frame) for label, frame in zip("ab", frames, strict=True))
    found = stats.compare(a, b, stats.pooled_seed_variance([a, b]))
    test = scipy_stats.ttest_rel(a.values, b.values)
    assert found.how == "hierarchical bootstrap" and found.p == pytest.approx(test.pvalue, rel=1e-6)
    low, high = test.confidence_interval(0.95)
    assert found.low == pytest.approx(low, abs=0.12 * (high - low)) and found.high == pytest.approx(high, abs=0.12 * (high - low))


def test_a_deterministic_row_pairs_with_every_seed_and_adds_no_variance():
    rng = np.random.default_rng(9)
    easy = rng.normal(0, 0.2, 80)
    noisy = simulated(rng, "noisy", 0.2, 3, 80, easy, 0.1)
    fixed = stats.sample("fixed", "score", {0: pd.DataFrame({"example": [f"e{i}" for i in range(80)], "score": easy})}, deterministic=True)
    pooled = stats.pooled_seed_variance([noisy, fixed])
    assert pooled.df == 2
    found = stats.compare(noisy, fixed, pooled)
    assert found.seeds == 3 and found.value == pytest.approx(noisy.values.mean() - easy.mean())
    v_x = (noisy.draws.mean(axis=0) - fixed.draws[0]).var(ddof=1)
    df = 2 * (1 + v_x / (pooled.value / 3)) ** 2
    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(v_x + pooled.value / 3)
    assert found.high - found.value == pytest.approx(half)


def test_one_seed_each_says_that_only_examples_are_in_the_interval():
    rng = np.random.default_rng(10)
    column = [stats.sample(label, "accuracy", {0: table(rng)}) for label in "ab"]
    assert stats.pooled_seed_variance(column) is None
    assert stats.compare(*column, None).how == "examples only"
    assert stats.minimum_detectable_difference(column, None) is None


def test_perplexities_are_compared_on_the_log_scale_by_tokens():
    frame = pd.DataFrame({"example": ["a", "b"], "score": [2.0, 4.0], "tokens": [10, 30]})
    row = stats.sample("a", "perplexity", {0: frame}, deterministic=True)
    assert row.values[0] == pytest.approx((20 + 120) / 40)
    worse = stats.sample("b", "perplexity", {0: frame.assign(score=frame.score + math.log(2))}, deterministic=True)
    found = stats.compare(worse, row, None)
    assert math.exp(found.value) == pytest.approx(2) and found.high - found.low == pytest.approx(0, abs=1e-9)


def test_minimum_detectable_difference_is_found_four_times_in_five():
    """Simulated pairs that differ by the MDD are significant in about 80 % (the MDD's own noise included)."""
    rng = np.random.default_rng(11)

    def column(effect):
        return [drawn(rng, str(i), effect * (i == 0), 3, 0.1, noise=0.05, example_sd=0.3) for i in range(8)]

    mdd = [stats.minimum_detectable_difference(rows, stats.pooled_seed_variance(rows)) for rows in (column(0) for _ in range(60))]
    effect, found = float(np.mean(mdd)), 0
    for _ in range(300):
        rows = column(effect)
        found += stats.compare(rows[0], rows[1], stats.pooled_seed_variance(rows)).p < 0.05
    assert 0.73 <= found / 300 <= 0.9


def test_equal_methods_are_not_told_apart_and_a_clear_difference_is():
    rng = np.random.default_rng(12)
    easy = rng.normal(0, 0.2, 200)
    column = [simulated(rng, str(i), effect, 3, 200, easy, 0.02) for i, effect in enumerate((0.0, 0.5, 0.5, -0.4))]
    best, tied = stats.not_told_from_best(column, higher_is_better=True)
    assert {best} | tied == {1, 2} and len(tied) == 1
    assert stats.not_told_from_best(column, higher_is_better=False) == (3, set())
    assert stats.not_told_from_best(column[:1], True) == (0, set())


@pytest.mark.parametrize("ahead", [0.0, 0.02])
def test_the_true_best_is_in_the_set_that_is_marked_in_19_of_20_columns(ahead):
    """Row 0 is the true best (of equals where `ahead` is 0): it is the best or tied with it. Far ahead, it is alone."""
    rng = np.random.default_rng(13)
    kept = 0
    for _ in range(400):
        best, tied = stats.not_told_from_best([drawn(rng, str(i), ahead * (i == 0), 3, 0.03) for i in range(6)], higher_is_better=True)
        kept += 0 in {best} | tied
    assert kept / 400 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)
    alone = stats.not_told_from_best([drawn(rng, str(i), 1.0 * (i == 0), 3, 0.03) for i in range(6)], higher_is_better=True)
    assert alone == (0, set())


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.9]) == [1.0, 1.0] and stats.holm([]) == []


def test_mcnemar_is_the_exact_binomial_test():
    names = [f"e{i}" for i in range(20)]
    a = stats.sample("a", "accuracy", {0: pd.DataFrame({"example": names, "score": [1.0] * 9 + [0.0] * 11})})
    b = stats.sample("b", "accuracy", {0: pd.DataFrame({"example": names, "score": [0.0] * 8 + [1.0] * 3 + [0.0] * 9})})
    # 8 examples only a has, 2 only b has: 2 * sum_{k<=2} C(10, k) / 2^10
    assert stats.mcnemar(a, b) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert stats.mcnemar(a, a) == 1.0
    c = stats.sample("c", "score", {0: pd.DataFrame({"example": names, "score": np.linspace(0, 1, 20)})})
    with pytest.raises(stats.NotComparable, match="scores of 0 and 1"):
        stats.mcnemar(a, c)
