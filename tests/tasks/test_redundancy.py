"""Redundancy of solutions: the first correct one, what follows it, and what repeats within it."""

import numpy as np
import pytest

from tasks import redundancy as r

GOOD = "Tom has 3 bags. Each holds 4 apples. So 3 * 4 = 12. The answer is 12."


def words(text):
    return len(text.split())


def test_sentences_end_at_lines_and_final_points_but_not_in_decimals():
    assert r.sentences("One costs $2.50. Two cost 5.0!\nSo it is 5.\n\n Fine ") == [
        "One costs $2.50.",
        "Two cost 5.0!",
        "So it is 5.",
        "Fine",
    ]
    assert r.sentences("  \n ") == []


def test_the_first_conclusion_with_the_gold_number_ends_the_solution():
    steps = r.sentences(GOOD)
    assert r.first_correct(steps, "12") == 3 and r.first_correct(steps, "13") is None
    assert r.first_correct(["12 apples."], "12") is None, "a number without a cue is no conclusion"
    assert r.first_correct(["Therefore it is 1,200."], "1200") == 1


def test_a_number_of_the_question_counts_only_after_the_cue():
    question = "There are 12 apples and 3 bags; 4 apples a bag. How many?"
    assert r.first_correct(["With 12 apples the first count = 7.", "So 12."], "12", question) == 2
    assert r.first_correct(["With 12 apples the first count = 7.", "So 12."], "12") == 1


def test_what_follows_the_answer_is_external():
    ending = r.measured("So 3 * 4 = 12", "12", True, "", words)
    assert (ending.erd, ending.fcs_tokens, ending.tokens) == (0.0, 6, 6)
    for k in (1, 5, 20):
        more = r.measured("So 3 * 4 = 12\n" + "again " * k, "12", True, "", words)
        assert more.erd == pytest.approx(k / (6 + k))


def test_wrong_or_undetected_solutions_are_undefined_not_zero():
    for correct, text in ((False, GOOD), (True, "twelve"), (True, "")):
        found = r.measured(text, "12", correct, "", words)
        assert found.erd is None and found.fcs is None and found.fcs_tokens is None


def test_white_space_at_the_end_changes_nothing():
    assert r.measured(GOOD, "12", True, "", words) == r.measured(GOOD + "  \n\n ", "12", True, "", words)


def test_a_solution_cut_at_its_first_answer_still_has_it():
    found = r.measured(GOOD + " Let me check again. 4 * 3 is 12.", "12", True, "", words)
    again = r.measured(found.fcs, "12", True, "", words)
    assert again.erd == 0 and again.fcs == found.fcs and found.erd > 0


def test_repetition_drives_the_internal_degree_to_one_and_orthogonal_steps_to_zero():
    steps = ["The same."] * 6
    texts = r.windows(steps)
    assert len(texts) == 4 and len(set(texts)) == 1
    assert r.internal(np.tile([0.3, 0.4], (4, 1))) == pytest.approx(1.0) and r.low_gain(np.ones((4, 2))) == 1.0
    assert r.internal(np.eye(5)) == pytest.approx(0.0) and r.low_gain(np.eye(5)) == 0.0


def test_too_few_sentences_leave_it_undefined():
    assert r.windows(["a", "b"]) == [] and r.windows(["a", "b", "c"]) == ["a b c"]
    assert r.internal(np.ones((1, 3))) is None and r.internal(np.zeros((0, 3))) is None and r.low_gain(np.ones((1, 3))) is None


def test_the_base_is_the_mean_cosine_across_problems_and_maps_to_zero():
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(n, 6)) + 1 for n in (3, 5, 2)]
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in groups]
    pairs = [(unit[i] @ unit[j].T).mean() for i in range(3) for j in range(3) if i != j]
    assert r.baseline(groups) == pytest.approx(np.mean(pairs)) and r.baseline(groups[:1]) == 0.0
    angle = np.arccos(0.6)
    steps = np.array([[np.cos(i * angle), np.sin(i * angle)] for i in range(4)])
    assert r.internal(steps) == pytest.approx(0.6) and r.internal(steps, base=0.6) == pytest.approx(0.0, abs=1e-12)
    assert r.internal(np.ones((3, 2)), base=0.6) == pytest.approx(1.0)


def test_repetition_measures():
    assert r.distinct([1, 2, 3, 1, 2, 3]) == pytest.approx(3 / 4) and r.distinct([1, 2]) is None
    assert r.longest_repeat([1, 2, 3, 9, 1, 2, 3, 8]) == 3 and r.longest_repeat([1, 2, 3]) == 0 and r.longest_repeat([5] * 6) == 5
    assert r.longest_repeat([]) == 0 and r.compression("") is None
    assert r.compression("the same again " * 50) < 0.1 < 0.9 < r.compression("q8#Zp")
