"""Redundancy of solutions: the first correct one, what follows it, and what repeats within it."""

import numpy as np
import pytest

from tasks import redundancy as r
from tasks import solution

GOOD = "Tom has 3 bags. Each holds 4 apples. So 3 * 4 = 12. The answer is 12."


def words(text):
    return [len(word) for word in text.split()]


def test_sentences_end_at_lines_and_final_points_but_not_in_decimals():
    assert r.sentences("One costs $2.50. Two cost 5.0!\nSo it is 5.\n\n Fine ") == [
        "One costs $2.50.",
        "Two cost 5.0!",
        "So it is 5.",
        "Fine",
    ]
    assert r.sentences("  \n ") == []


def test_the_first_conclusion_with_the_gold_number_ends_the_solution():
    steps = ["Tom has 3 bags.", "So 3 * 4 = 12.", "Let me check.", "The answer is 12."]
    assert r.first_correct(steps, "12") == 2 and r.first_correct(steps, "13") is None
    assert r.first_correct(["12 apples."], "12") is None, "a number without a cue is no conclusion"
    assert r.first_correct(["Therefore it is 1,200."], "1200") == 1 == r.first_correct(["We get \\boxed{12}"], "12.0")


CONCLUDED = {
    "So 12 - 4 = 8.": {8},
    "They sold 48/2 = $<<48/2=24>>24 worth, and 3 + 1 = 4.": {24, 4},
    "4 + 4 = 2 * 4 = 8": {8},
    "The cost = $-2.50": {-2.5},
    "So she has 24 apples left.": {24},
    "The answer is: 1,024": {1024},
    "It has 12 apples.": set(),
}


@pytest.mark.parametrize(("step", "numbers"), CONCLUDED.items(), ids=CONCLUDED.keys())
def test_operands_are_not_concluded(step, numbers):
    assert r.concluded(step) == numbers


def test_a_number_of_the_question_is_no_conclusion_unless_it_is_computed_or_stated():
    question = "There are 12 apples and 3 bags; 4 apples a bag. How many?"
    steps = ["So there are 12 apples.", "Now 3 * 4 = 12."]
    assert r.first_correct(steps, "12", question) == 2 and r.first_correct(steps, "12") == 1
    assert r.first_correct(["The answer is 12."], "12", question) == 1


@pytest.mark.parametrize("end", ["The answer is: 12", "#### 12", "The final answer is $12.", "The answer is 12.\n#### 12"])
def test_the_format_of_the_answer_belongs_to_the_solution(end):
    """Models tuned on MetaMath end so: no redundancy. After anything else it is."""
    assert r.measured(f"So 3 * 4 = 12.\n{end}", "12", True, "", words).erd == 0
    assert r.measured(f"So 3 * 4 = 12.\nLet me check.\n{end}", "12", True, "", words).erd > 0
    assert r.measured("So 3 * 4 = 12.\nThe answer is 13.", "12", True, "", words).erd > 0


def test_real_solutions_are_found_to_be_free_of_redundancy(folder):
    """Every worked solution of GSM8K states its answer; nearly all of them for the first time in the last step."""
    rows = folder.rows("gsm8k", "test").data
    sizes = []
    for question, answer in zip(rows["question"], rows["answer"], strict=True):
        steps = r.sentences(answer)
        sizes.append((r.first_correct(steps, solution.extract(answer), question), len(steps)))
    assert all(first is not None for first, _ in sizes)
    assert sum(first == size for first, size in sizes) > 0.9 * len(sizes)


def test_what_follows_the_answer_is_external():
    ending = r.measured("So 3 * 4 = 12", "12", True, "", words)
    assert (ending.erd, ending.fcs_tokens, len(ending.ids)) == (0.0, 6, 6)
    for k in (1, 5, 20):
        more = r.measured("So 3 * 4 = 12\n" + "again " * k, "12", True, "", words)
        assert more.erd == pytest.approx(k / (6 + k))


def test_wrong_or_undetected_solutions_are_undefined_not_zero():
    for correct, text in ((False, GOOD), (True, "twelve"), (True, "")):
        found = r.measured(text, "12", correct, "", words)
        assert found.erd is None and found.fcs is None and found.fcs_tokens is None and found.windows == []


def test_white_space_at_the_end_changes_nothing():
    assert r.measured(GOOD, "12", True, "", words) == r.measured(GOOD + "  \n\n ", "12", True, "", words)


def test_a_solution_cut_at_its_first_answer_still_has_it():
    found = r.measured(GOOD + " Let me check again. 4 * 3 is 12.", "12", True, "", words)
    again = r.measured(found.fcs, "12", True, "", words)
    assert "check" not in found.fcs and solution.extract(r.measured("6*2=12\n#### 12\nOr 12?", "12", True, "", words).fcs) == "12"
    assert again.erd == 0 and again.fcs == found.fcs and found.erd > 0


def letters(texts):
    """An embedding that depends on the text alone: counts of letters."""
    return np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=float)


def test_repetition_drives_the_internal_degree_to_one_and_orthogonal_steps_to_zero():
    repeated = r.measured("Two and two = 4.\n" * 5 + "So it = 5.", "5", True, "", words)
    assert len(repeated.windows) == 4 and r.internal(letters(repeated.windows[:3])) == pytest.approx(1.0)
    more = r.measured("Two and two = 4.\n" * 2 + "So it = 5.", "5", True, "", words)
    assert r.internal(letters(more.windows)) is None and len(more.windows) == 1
    assert r.internal(np.eye(5)) == pytest.approx(0.0) and r.low_gain(np.eye(5)) == 0.0
    assert r.low_gain(np.ones((4, 2))) == 1.0 and r.low_gain(np.array([[1, 0], [1, 0.1], [0, 1]])) == 0.5


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
    assert r.internal(np.ones((3, 2)), base=0.6) == pytest.approx(1.0) and r.internal(np.ones((3, 2)), base=1.0) is None


def test_repetition_measures():
    assert r.distinct([1, 2, 3, 1, 2, 3]) == pytest.approx(3 / 4) and r.distinct([1, 2]) is None
    assert r.longest_repeat([1, 2, 3, 9, 1, 2, 3, 8]) == 3 and r.longest_repeat([1, 2, 3]) == 0 and r.longest_repeat([5] * 6) == 5
    assert r.longest_repeat([]) == 0 and r.compression("") is None
    assert r.compression("the same again " * 50) < 0.1 < 0.9 < r.compression("q8#Zp")


def test_the_summary_averages_solutions_with_a_first_correct_one():
    long = "One.\nTwo.\nThree.\nSo 3 * 4 = 12.\nLet me check that again."
    texts = [[(long, True), ("So 3 * 4 = 12.", True)], [("So 3 * 4 = 13.", False), ("twelve", True)]]
    found = [[r.measured(text, "12", right, "", words) for text, right in own] for own in texts]
    embedded = r.Windows([[np.array([[1.0, 0.0], [0.6, 0.8]]), np.zeros((0,))], [np.zeros((0,))] * 2])
    made = r.summary(found, embedded, correct=3, budgets=[6, 9])
    assert made["erd"] == pytest.approx((5 / 14 + 0) / 2) and made["ird"] == pytest.approx(0.6) and made["base"] == 0
    assert made["coverage"] == pytest.approx(2 / 3) and made["undefined_ird"] == pytest.approx(1 / 2)
    assert made["tokens"] == pytest.approx((14 + 6) / 2) and made["fcs_tokens"] == pytest.approx((9 + 6) / 2)
    assert made["tokens_per_correct"] == pytest.approx((14 + 6 + 6 + 1) / 3)
    assert made["accuracy_at_6"] == 1 / 4 and made["accuracy_at_9"] == 1 / 2
    none = r.summary([[r.measured("no", "12", False, "", words)]], r.Windows([[np.zeros((0,))]]), 0, [6])
    assert all(np.isnan(none[name]) for name in ("erd", "ird", "tokens", "coverage", "undefined_ird")) and none["accuracy_at_6"] == 0


def test_the_order_of_problems_and_solutions_changes_no_degree():
    rng = np.random.default_rng(1)
    groups = [[rng.normal(size=(n, 4)) + 1 for n in sizes] for sizes in ((3, 2), (4, 0), (2, 5))]
    there, back = r.Windows(groups).internal(), r.Windows([own[::-1] for own in groups[::-1]]).internal()
    assert [own[::-1] for own in back[::-1]] == [[None if v is None else pytest.approx(v) for v in own] for own in there]
