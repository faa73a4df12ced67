"""Resampling with imperfect verifiers: exact expectations against enumeration, simulation and the two-type model."""

from itertools import combinations, permutations

import numpy as np
import pytest

from methods.spec import UserError
from tasks.resampling import COSTS, Types, ceiling, outcomes, pass_at_k
from tasks.verifiers import Sample, parse, sound

PAPER = Types(success=(0.87, 0.13), prior=(0.58, 0.42), completeness=1.0, soundness=0.75)
"""The example of the authors' notebook."""


def test_pass_at_k_is_the_share_of_subsets_with_a_hit():
    for n, hits in ((6, 0), (6, 2), (6, 6), (5, 1)):
        bits = [i < hits for i in range(n)]
        for k in range(1, n + 1):
            subsets = list(combinations(bits, k))
            assert pass_at_k(n, hits, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
    assert pass_at_k(200, [0, 3, 200], 100).tolist() == pytest.approx([0, 1 - (100 * 99 * 98) / (200 * 199 * 198), 1])
    with pytest.raises(ValueError, match="k=7 is not between"):
        pass_at_k(6, 1, 7)


def bits(seed, problems=8, n=6, rate=0.4):
    rng = np.random.default_rng(seed)
    return rng.random((problems, n)) < rate, rng.random((problems, n)) < 0.5


def first_accepted(c, v, order, k):
    """(correct, wrong) of one order, by walking along it."""
    for i in order[:k]:
        if v[i]:
            return (1, 0) if c[i] else (0, 1)
    return (0, 0)


def test_expected_outcomes_are_the_mean_over_all_orders():
    correct, accepted = bits(0, problems=3, n=5)
    made = outcomes(correct, accepted, 5)
    for p in range(3):
        for k in range(1, 6):
            walks = [first_accepted(correct[p], accepted[p], order, k) for order in permutations(range(5))]
            assert (made.correct[p, k - 1], made.wrong[p, k - 1]) == pytest.approx(tuple(np.mean(walks, axis=0)), abs=1e-12)


def test_a_perfect_verifier_gives_pass_at_k_without_false_positives():
    correct, _ = bits(1)
    made = outcomes(correct, correct, 6)
    assert made.false_positives() == 0 and made.accuracy() == pytest.approx([pass_at_k(6, correct.sum(1), k).mean() for k in range(1, 7)])
    assert (np.diff(made.reward(8)) >= -1e-12).all()


def test_with_a_perfect_verifier_the_accuracy_is_one_minus_q_to_the_k_in_expectation():
    correct = np.random.default_rng(0).random((20_000, 12)) < 0.3
    found = outcomes(correct, correct, 8).accuracy()
    expected = 1 - 0.7 ** np.arange(1, 9)
    assert np.abs(found - expected).max() < 3 * np.sqrt(0.25 / 20_000)


def test_a_verifier_that_accepts_all_makes_resampling_useless():
    correct, _ = bits(2)
    made = outcomes(correct, np.ones_like(correct), 6)
    assert made.accuracy() == pytest.approx([correct.mean()] * 6) and 1 - made.false_positives() == pytest.approx(correct.mean())
    assert made.reward(1) == pytest.approx([2 * correct.mean() - 1] * 6)


def test_simulated_rewards_match_the_analytic_model():
    """Samples with replacement in the model, a large n here: within 2 standard errors."""
    types = Types((0.8, 0.2), (0.5, 0.5), 0.9, 0.7)
    rng, problems, n = np.random.default_rng(3), 20_000, 60
    success = np.where(rng.random(problems) < 0.5, 0.8, 0.2)[:, None]
    correct = rng.random((problems, n)) < success
    accepted = np.where(correct, rng.random((problems, n)) < 0.9, rng.random((problems, n)) < 0.3)
    made = outcomes(correct, accepted, 10)
    error = (made.correct - 2 * made.wrong).std(axis=0) / np.sqrt(problems)
    assert (np.abs(made.reward(2) - types.reward(10, 2)) < 2 * error).all()


def test_the_posterior_is_bayes_and_attempts_add_up():
    """Independent: the probabilities of all histories of K attempts, one by one."""
    for k in range(1, 6):
        reach = sum(p * b ** (k - 1) for p, b in zip(PAPER.prior, PAPER.reject(), strict=True))
        bayes = [p * b ** (k - 1) / reach for p, b in zip(PAPER.prior, PAPER.reject(), strict=True)]
        assert PAPER.posterior(k)[-1] == pytest.approx(bayes)
        value = sum(p * ((1 - r) * 0.75) ** (k - 1) * (r - 2 * (1 - r) * 0.25) for p, r in zip(PAPER.prior, PAPER.success, strict=True))
        assert PAPER.values(k, 1, -2)[-1] == pytest.approx(value)
    certain = Types((1.0, 0.0), (0.5, 0.5), 1.0, 0.0).reward(4, 1)
    assert certain == pytest.approx([0, 0, 0, 0])


def test_the_notebook_weighs_later_attempts_by_the_posterior():
    exact, notebook = (PAPER.values(6, 1, -1, variant) for variant in ("exact", "notebook"))
    assert exact[0] == pytest.approx(notebook[0])
    weights = PAPER.posterior(6)[3] @ PAPER.reject() ** 3 / (np.array(PAPER.prior) @ PAPER.reject() ** 3)
    assert notebook[3] == pytest.approx(exact[3] * weights) and weights > 1.2


def test_free_false_positives_never_harm_and_dear_ones_forbid_answers():
    correct, accepted = bits(4, rate=0.15)
    made = outcomes(correct, accepted, 6)
    assert (np.diff(made.reward(0)) >= -1e-12).all() and made.reward(0)[made.best_attempts(0) - 1] == made.reward(0).max()
    assert made.best_attempts(8) == 0 and [made.best_attempts(cost) for cost in COSTS] == sorted(
        (made.best_attempts(cost) for cost in COSTS), reverse=True
    )


def test_the_best_number_of_attempts_may_be_small():
    """With s = 0.75 the posterior drifts to the hard type, and each further attempt there costs: below 10, as the paper says."""
    assert 1 <= int(PAPER.reward(50, 1).argmax()) + 1 < 10


def test_problems_without_an_accepted_sample_are_out_of_the_rate_but_in_the_reward():
    correct = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    accepted = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    made = outcomes(correct, accepted, 4)
    assert made.false_positives() == pytest.approx(0.5) and ceiling(correct, accepted) == pytest.approx(0.5)
    assert made.reward(0)[-1] == pytest.approx(0.25) and made.accuracy()[-1] == pytest.approx(0.25)
    assert np.isnan(outcomes(correct, np.zeros((2, 4)), 4).false_positives())


def test_the_rates_by_problem_and_by_answer_differ():
    correct = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    accepted = np.array([[1, 1, 1, 1], [0, 0, 0, 1]], dtype=bool)
    made = outcomes(correct, accepted, 4)
    assert made.false_positives() == pytest.approx(0.5)
    assert made.false_positives_at()[[0, 3]].tolist() == pytest.approx([0.25 / 1.25, 0.5])


def one(text="", answer="4", correct=True, logprob=-0.1):
    return Sample(text, answer, correct, logprob)


def test_each_verifier_has_its_own_flaw():
    wrong = [one("2 + 2 = 4", "4", False), one("2 + 2 = 5", "5"), one("so 4"), one(answer=None, correct=False), one(answer="4.5")]
    votes = [one(answer=a) for a in ("4", "4", "5", None)]

    def accepts(name):
        return parse(name)[0](wrong, votes)

    assert accepts("exact") == [False, True, True, False, True]
    assert accepts("format") == [True, True, True, False, False]
    assert accepts("arithmetic") == [True, False, False, False, False]
    assert accepts("agreement:4:0.5") == [True, False, True, False, False] and parse("agreement:4:0.5")[1] == 4
    assert parse("logprob:-0.2")[0]([one(), one(logprob=-0.3)], []) == [True, False]


STATED = {
    "3 + 4 = 7": True, "3+4=8": False, "Half is 48/2 = <<48/2=24>>24.": True, "12 * 1,000 = 12,000": True, "$5 x 3 = $15": True,
    "10 / 3 = 3.33": True, "7 / 0 = 0": False, "-3 - 4 = -7": True, "2 + 2 = 4 and 1 + 1 = 3": False, "no sum": False,
}  # fmt: skip


@pytest.mark.parametrize(("text", "right"), STATED.items(), ids=STATED.keys())
def test_stated_operations_are_checked(text, right):
    assert sound(text) == right


NONE = ("exactly", "exact:1", "agreement:5", "agreement:0:0.5", "agreement:5:1.5", "logprob:0.5", "logprob:x", "flipped:1", "flipped:2:1")


@pytest.mark.parametrize("name", NONE)
def test_verifiers_that_do_not_exist_are_refused(name):
    with pytest.raises(UserError, match=r"task\.verifiers="):
        parse(name)


def test_a_flipped_verifier_has_its_rates_and_repeats_itself():
    samples = [Sample("", "4", i % 2 == 0, 0.0, i) for i in range(20_000)]
    accepted = np.array(parse("flipped:0.9:0.7")[0](samples, []))
    error = np.sqrt(0.25 / 10_000)
    assert accepted[::2].mean() == pytest.approx(0.9, abs=3 * error) and accepted[1::2].mean() == pytest.approx(0.3, abs=3 * error)
    assert parse("flipped:0.9:0.7")[0](samples[::-1], [])[::-1] == accepted.tolist()
    assert parse("flipped:1:1")[0](samples, []) == [sample.correct for sample in samples]
    assert all(parse("flipped:1:0")[0](samples, [])) and not any(parse("flipped:0:1")[0](samples, []))
