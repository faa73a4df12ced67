"""Answer extraction on outputs as models write them. Expected values follow from the papers' rules by hand, flaws of the rules included."""

from functools import partial
from math import isinf

import pytest

from tasks import extraction as e

boolq, piqa, siqa = (partial(e.commonsense, name) for name in ("boolq", "piqa", "social_iqa"))
hellaswag, winogrande, arc = (partial(e.commonsense, name) for name in ("hellaswag", "winogrande", "arc_challenge"))

COMMONSENSE = [
    (boolq, "the correct answer is true", "true"),
    (boolq, "  the correct answer is false\n", "false"),
    (boolq, "", None),
    (boolq, "True", None),  # case-sensitive
    (boolq, "The answer is FALSE.", None),
    (boolq, "false, because it is not true", "false"),  # the first of two
    (boolq, "It is not false; the correct answer is true", "false"),
    (boolq, "that statement is untrue", "true"),  # inside a word
    (boolq, "the correct answer is falsehood", "false"),
    (boolq, "the correct answer is tr", None),  # cut by the token limit
    (boolq, "yes", None),
    (boolq, "### Response:\nthe correct answer is true", None),  # heading first: nothing before it
    (boolq, "I do not know.\n\n### Response:\nthe correct answer is true", None),
    (boolq, "the correct answer is true\n\n### Response: false", "true"),
    (piqa, "the correct answer is solution2", "solution2"),
    (piqa, "Solution1", None),
    (piqa, "solution 1", None),
    (piqa, "solution3, or solution1", "solution1"),
    (piqa, "solution12", "solution1"),  # prefix of another number
    (piqa, "Answer format: solution1/solution2", "solution1"),  # the prompt's own list, repeated
    (siqa, "the correct answer is answer3", "answer3"),
    (siqa, "the correct answer is answer5", "answer5"),  # not offered by the question, yet an answer
    (siqa, "the correct answer is answer6", None),
    (siqa, "the correct answer is Answer2", None),
    (siqa, "answer: 2", None),
    (arc, "The correct answer to the question is answer4.\n\nanswer1 is wrong", "answer4"),
    (arc, "answers: answer2", "answer2"),
    (arc, "B", None),
    (hellaswag, "the correct answer is ending4", "ending4"),
    (hellaswag, "ending5", None),
    (hellaswag, "the happy ending: ending2 or ending3", "ending2"),
    (hellaswag, "pending1", "ending1"),
    (winogrande, "the correct answer is option1", "option1"),
    (winogrande, "option3", None),
    (winogrande, "Sarah", None),
    (winogrande, "adoption2 then option1", "option2"),
]
LETTERS = [
    ("The answer is (D).", "D"),
    ("Answer: B", "A"),  # the capital of the word
    ("ANSWER (E)", "A"),
    ("the answer is c", None),
    ("Rationale: 12 + 7 = 19. So (C) 19.", "C"),
    ("Each day he walks 3 km. The answer is (B).", "E"),  # the first letter of a sentence
    ("The value is 23.65. Answer Choices: (A)", "A"),
    ("", None),
    ("(F) none of these", None),
    ("both (A) and (B)", "A"),
]
NUMBERS = [
    ("A: 16 - 12 = 4 kids. The answer is 4.", 4.0),  # the point at the end belongs to the number
    ("The answer is 1,234,567.", 1234567.0),
    ("The answer is $17.50 each", 17.5),
    ("He has -3 apples", -3.0),
    ("7-3", -3.0),  # a minus sign is read as a sign
    ("7 - 3", 3.0),  # with a space it is not
    ("3/4 of the cake", 4.0),
    ("12 cm, or 5 inches", 5.0),
    ("50%", 50.0),
    ("1.5.2", 2.0),
    ("twelve", None),
    ("", None),
    ("The answer is 10\n\n### Response:\nThe answer is 12", 10.0),
    ("2e3 metres", 3.0),
    ("It costs $.75", 75.0),  # no digit before the point: the point is lost
    ("the answer is 0.5 (see question 8)", 8.0),
    ("between 3,4 and 5", 5.0),
    ("pairs (3,4)", 34.0),  # commas go first
    ("The answer is 12.\nThe answer is 13.", 13.0),
]
METAMATH = [
    ("So she has 1000 + 234.\nThe answer is: 1,234", 1234),
    ("The answer is: 3/4", 1),
    ("The answer is: 1/2", 0),  # ties to even
    ("The answer is: 7/2", 4),
    ("The answer is: -3/4", -1),
    ("The answer is: 12.5", 12),
    ("The answer is: 13.5", 14),
    ("The answer is: $18", 18),
    ("The answer is: -5 degrees", -5),
    ("The answer is: +7", 7),
    ("The answer is: 1,234,567", 1234),  # only two groups are read
    ("The answer is: .75", 1),
    ("The answer is: 9/0", 9),
    ("The answer is: /5", None),
    ("The answer is: x = 21", 21),
    ("The answer is: twelve", None),
    ("The answer is 42", None),  # no colon, no answer
    ("the answer is: 42", None),
    ("The answer is: 4\nThe answer is: 6", 6),
    ("The answer is: ", None),
    ("", None),
    ("The answer is: " + "9" * 400, None),  # beyond any float
]
STRICT = [
    ("He pays 2 * 9 = 18.\n#### 18", "18"),
    ("#### 1,000", "1,000"),
    ("#### -5 dollars", "-5"),
    ("#### $18", None),
    ("####18", None),
    ("The answer is 18", None),
    ("#### 18.", "18."),
    ("#### 5\n#### 6", "5"),  # the first
]
FLEXIBLE = [
    ("The answer is $1,250.", "$1,250."),
    ("She has 7 left", "7"),
    ("5 and 12 and -8", "-8"),
    ("The total is 10.", "10."),
    ("No idea...", "..."),  # looks like a number to this filter
    ("3 apples cost $4.50 in 2020!", "2020"),
    ("none", None),
]


@pytest.mark.parametrize(("extract", "text", "answer"), COMMONSENSE)
def test_first_legal_answer(extract, text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(("text", "answer"), LETTERS)
def test_first_capital_letter(text, answer):
    assert e.aqua_letter(text) == answer


@pytest.mark.parametrize(("text", "answer"), NUMBERS)
def test_last_number(text, answer):
    assert e.last_number(text) == answer


@pytest.mark.parametrize(("text", "answer"), METAMATH)
def test_integer_after_the_last_marker(text, answer):
    assert e.metamath_integer(text) == answer


@pytest.mark.parametrize(("text", "answer"), STRICT)
def test_strict_match(text, answer):
    assert e.gsm8k_strict(text) == answer


@pytest.mark.parametrize(("text", "answer"), FLEXIBLE)
def test_flexible_extract(text, answer):
    assert e.gsm8k_flexible(text) == answer


def test_the_gsm8k_filters_are_lm_evals():
    from lm_eval.filters.extraction import RegexFilter

    texts = [text for text, *_ in STRICT + FLEXIBLE + METAMATH[:-1] + NUMBERS]
    strict = RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)")
    flexible = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    for extract, reference in ((e.gsm8k_strict, strict), (e.gsm8k_flexible, flexible)):
        found = [extract(text) or "[invalid]" for text in texts]
        assert found == [row[0] for row in reference.apply([[text] for text in texts], [{}] * len(texts))]


def test_numbers_are_equal_within_a_thousandth():
    assert e.same_number(8.0, "8.0") and e.same_number(1.834, "1.8333333333333335") and not e.same_number(1.835, "1.8333333333333335")
    assert not e.same_number(float("inf"), "8.0") and isinf(e.last_number("9" * 400))


def test_gold_of_gsm8k():
    gold = "She pays 1,000 + 80 = <<1000+80=1080>>1080 dollars.\n#### 1,080"
    assert e.gsm8k_gold(gold) == 1080 and e.same_integer(1080, gold) and not e.same_integer(1081, gold)
    assert e.gsm8k_equal("$1,080.", gold) and e.gsm8k_equal("1080", gold) and not e.gsm8k_equal("1080.0", gold)
