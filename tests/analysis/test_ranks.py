"""Ranks across tasks against scipy, published constants, enumeration and the paired comparisons that they summarise."""

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis import ranks, stats
from analysis.stats import NotComparable, Sample

N, DRAWS = 100, 400


def row(rng, label, effect, seeds, example_sd=0.2, seed_sd=0.03, noise=0.02, deterministic=False, examples=("x",) * N):
    scores = effect + rng.normal(0, example_sd, N) + rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, noise, (seeds, N))
    draws = scores @ stats.resamples(N, DRAWS).T / N
    return Sample(label, tuple(range(seeds)), scores.mean(axis=1), draws, examples, deterministic, scores)


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_every_pair_has_the_difference_and_p_value_of_its_own_comparison(seeds):
    rng = np.random.default_rng(seeds)
    column = [row(rng, str(i), 0.05 * i, seeds) for i in range(4)]
    column += [row(rng, f"fixed{i}", 0.1 * i, 1, deterministic=True) for i in range(2)]
    values, p = ranks.pairwise(column)
    pooled = stats.pooled_seed_variance(column)
    for i, j in product(range(6), repeat=2):
        if i != j:
            found = stats.compare(column[i], column[j], pooled)
            assert values[i, j] == pytest.approx(found.value) and p[i, j] == pytest.approx(found.p, rel=1e-6)


def test_rows_of_other_seeds_or_examples_are_refused_by_name():
    rng = np.random.default_rng(0)
    with pytest.raises(NotComparable, match="b and a have other seeds"):
        ranks.pairwise([row(rng, "a", 0, 3), row(rng, "b", 0, 2)])
    with pytest.raises(NotComparable, match="b and a were not measured on the same examples"):
        ranks.pairwise([row(rng, "a", 0, 3), row(rng, "b", 0, 3, examples=("y",) * N)])


@pytest.mark.parametrize(("tasks", "methods"), [(8, 3), (30, 5)])
def test_friedman_is_that_of_scipy_with_ties_and_its_p_value_where_tasks_are_many(tasks, methods):
    rng = np.random.default_rng([tasks, methods])
    scores = np.round(rng.normal(size=(tasks, methods)) + 0.15 * np.arange(methods), 1)
    statistic, p = ranks.friedman(ranks.ranks_of(scores))
    reference = scipy_stats.friedmanchisquare(*scores.T)
    assert statistic == pytest.approx(reference.statistic) and 0.001 < reference.pvalue < 0.999
    assert p == pytest.approx(reference.pvalue, abs=0.02)


def test_the_permutation_p_value_is_that_of_all_permutations_where_tasks_are_few():
    """Three tasks that agree on the order of three methods: 6 of the 216 arrangements do, p = 1/36; chi-square says 0.0498."""
    scores = np.array([[1.0, 2.0, 3.0]] * 3)
    found = ranks.ranks_of(scores)
    arrangements = list(product(permutations([1, 2, 3]), repeat=3))
    extreme = [np.ptp(np.sum(one, axis=0)) == 6 for one in arrangements]
    assert sum(extreme) == 6 and len(extreme) == 216
    statistic, p = ranks.friedman(found)
    assert statistic == pytest.approx(6) and p == pytest.approx(6 / 216, abs=0.006)
    assert ranks.friedman(np.full((3, 3), 2.0)) == (0.0, 1.0)


def test_ranks_are_one_for_the_best_and_shared_by_equals():
    assert ranks.ranks_of(np.array([[0.9, 0.8, 0.8, 0.1]])).tolist() == [[1, 2.5, 2.5, 4]]


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_published_table(methods, q):
    """q of Demsar (2006), table 5(a)."""
    assert ranks.critical_difference(methods, 14) == pytest.approx(q * np.sqrt(methods * (methods + 1) / (6 * 14)), abs=1e-3)


REFERENCES = json.loads((Path(__file__).parent / "golden" / "references.json").read_text())
"""What scikit-posthocs and statsmodels, which the tests do not need, gave for random data."""


def test_methods_that_the_critical_difference_tells_apart_are_those_of_scikit_posthocs():
    found = REFERENCES["nemenyi"]
    mean = ranks.ranks_of(np.array(found["scores (tasks, methods)"])).mean(axis=0)
    distance = np.abs(mean[:, None] - mean[None, :])
    told = np.array(found["p"]) <= 0.05
    assert 0 < told.sum() < told.size - 5
    assert ((distance >= ranks.critical_difference(5, 12)) == told).all()


def test_holm_and_mcnemar_are_those_of_statsmodels():
    assert stats.holm(REFERENCES["holm"]["p"]) == pytest.approx(REFERENCES["holm"]["adjusted"])
    for case in REFERENCES["mcnemar"]:
        right = {
            "a": [1.0] * case["only a"] + [0.0] * case["only b"] + [1.0] * 5,
            "b": [0.0] * case["only a"] + [1.0] * (case["only b"] + 5),
        }
        tables = {label: pd.DataFrame({"example": map(str, range(len(scores))), "score": scores}) for label, scores in right.items()}
        a, b = (stats.sample(label, "accuracy", {0: table}) for label, table in tables.items())
        assert stats.mcnemar(a, b) == pytest.approx(case["p"])


def test_groups_are_the_longest_runs_within_the_distance():
    found = ranks.cliques([("a", 1.0), ("b", 1.5), ("c", 2.2), ("d", 4.0), ("e", 4.1), ("f", 9.0)], 1.25)
    assert found == (("a", "b", "c"), ("d", "e"))
    assert ranks.cliques([("a", 1.0), ("b", 1.9), ("c", 2.8)], 1.0) == (("a", "b"), ("b", "c"))


def test_wins_ties_and_losses_by_hand():
    """Two equal methods and one far below on one task, far above on the other, where lower is better."""
    names = ("a", "b", "c")
    up = [row(np.random.default_rng(i), name, effect, 3) for i, (name, effect) in enumerate(zip(names, (0, 0, -2), strict=True))]
    down = [row(np.random.default_rng(i), name, effect, 3) for i, (name, effect) in enumerate(zip(names, (0, 0, 2), strict=True))]
    found = ranks.ranking({"up": up, "down": down}, {"up": True, "down": False})
    a, b, c = (next(one for one in found.standings if one.label == name) for name in names)
    assert (a.wins, a.ties, a.losses) == (b.wins, b.ties, b.losses) == (2, 2, 0)
    assert (c.wins, c.ties, c.losses, c.rank) == (0, 0, 4, 3.0) and found.standings[-1] is c
    assert found.tasks == ("up", "down") and found.critical_difference == ranks.critical_difference(3, 2)


def test_equal_methods_rarely_win():
    """Type I error of the whole column: under 5 % of columns of four equal methods may have any win (Holm)."""
    rng = np.random.default_rng(5)
    any_win = [bool((ranks.outcomes([row(rng, str(i), 0, 3) for i in range(4)]) != 0).any()) for _ in range(300)]
    assert np.mean(any_win) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_deterministic_rows_rank_beside_others():
    rng = np.random.default_rng(7)
    column = [row(rng, "noisy", 1, 3), row(rng, "fixed", 0, 1, deterministic=True)]
    found = ranks.ranking({"a": column, "b": column}, {"a": True, "b": True})
    assert [one.label for one in found.standings] == ["noisy", "fixed"] and found.p is None
    assert found.standings[0].wins == 2
