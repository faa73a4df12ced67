"""Answers out of generated text, as published protocols find them; None = no answer that the protocol accepts.

Pure functions of the text, one per protocol: what looks like a flaw here (a first match inside another word, a decimal cut off) is
what the published numbers were made with.
"""

import re
from fractions import Fraction

MARKER = "### Response:"
"""Heading before a response in Alpaca's prompt."""
LEGAL = {
    "boolq": "true|false",
    "piqa": "solution1|solution2",
    "social_iqa": "answer1|answer2|answer3|answer4|answer5",
    "arc_easy": "answer1|answer2|answer3|answer4|answer5",
    "arc_challenge": "answer1|answer2|answer3|answer4|answer5",
    "openbookqa": "answer1|answer2|answer3|answer4|answer5",
    "hellaswag": "ending1|ending2|ending3|ending4",
    "winogrande": "option1|option2",
}
"""What counts as an answer on the eight commonsense sets (LLM-Adapters, arXiv 2304.01933), case-sensitive, anywhere in the text."""
TOLERANCE = 1e-3
"""Largest difference between two numbers that LLM-Adapters takes for equal."""
METAMATH_MARKER = "The answer is: "


def response(completion: str) -> str:
    """The part of a completion that LLM-Adapters parses: up to where the model writes the heading once more, without outer space."""
    return completion.split(MARKER)[0].strip()


def commonsense(task: str, completion: str) -> str | None:
    """The first legal answer in the response; `task` is a key of `LEGAL`."""
    found = re.search(LEGAL[task], response(completion))
    return found.group() if found else None


def last_number(completion: str) -> float | None:
    """The last number of the response, commas removed first (LLM-Adapters on GSM8K, SVAMP, MAWPS, ...)."""
    found = re.findall(r"-?\d+\.?\d*", response(completion).replace(",", ""))
    return float(found[-1]) if found else None


def same_number(found: float, gold: str) -> bool:
    """Whether a number is the gold one to `TOLERANCE`."""
    return abs(found - float(gold)) <= TOLERANCE


def aqua_letter(completion: str) -> str | None:
    """The first capital A to E of the response, also inside a word (LLM-Adapters on AQuA)."""
    found = re.search("[A-E]", response(completion))
    return found.group() if found else None


def metamath_integer(completion: str) -> int | None:
    """The number after the last `The answer is: `, rounded to an integer, ties to even (MetaMath, arXiv 2309.12284, on GSM8K).

    A fraction a/b is evaluated (a alone where b is 0); of a number with two commas or points only the first two groups are read.
    """
    _, marker, answer = completion.rpartition(METAMATH_MARKER)
    found = re.search(r"[\-+]?\d*[\.,/]?\d+", answer) if marker else None
    if found is None:
        return None
    top, slash, bottom = found.group().replace(",", "").partition("/")
    if slash and not top.strip("+-"):
        return None
    value = float(Fraction(int(top), int(bottom))) if slash and int(bottom) else float(top)
    return None if abs(value) == float("inf") else round(value)


def gsm8k_gold(answer: str) -> int:
    """The integer after `#### ` at the end of GSM8K's worked solution."""
    return int(answer.rpartition("#### ")[2].replace(",", ""))


def same_integer(found: int, gold: str) -> bool:
    """Whether an integer is the result of GSM8K's worked solution `gold`."""
    return found == gsm8k_gold(gold)


def gsm8k_strict(completion: str) -> str | None:
    """What follows the first `#### `: the filter `strict-match` of lm-eval's gsm8k."""
    found = re.search(r"#### (-?[0-9.,]+)", completion)
    return found.group(1).strip() if found else None


def gsm8k_flexible(completion: str) -> str | None:
    """The last thing that looks like a number: the filter `flexible-extract` of lm-eval's gsm8k."""
    found = re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", completion)
    return found[-1].strip() if found else None


def gsm8k_equal(found: str, gold: str) -> bool:
    """lm-eval's exact match of an extracted answer with GSM8K's worked solution: without commas, dollars and a final point."""
    return _gsm8k_normal(found) == _gsm8k_normal(gold)


def _gsm8k_normal(text: str) -> str:
    for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
        text = re.sub(ignored, "", text)
    return text.lower()
