"""Verifiers of sampled solutions, each imperfect in its own way (arXiv 2411.17501). Torch-free.

A verifier is named by a text such as `agreement:5:0.5`; it sees the samples of one question and says which it accepts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from methods.spec import UserError, number
from tasks.toy.draws import Draws

OPERATION = re.compile(r"(-?\d+(?:\.\d+)?)\s*([-+*/x×])\s*(-?\d+(?:\.\d+)?)\s*=\s*(-?\d+(?:\.\d+)?)")  # noqa: RUF001
TOLERANCE = 1e-2
"""Largest error of a stated result: worked solutions round to cents."""
RESOLUTION = 10**6
"""Steps of a rate."""


@dataclass(frozen=True)
class Sample:
    """One sampled solution."""

    text: str
    answer: str | None
    """What the protocol extracts; None = nothing."""
    correct: bool
    logprob: float
    """Mean log-probability per token in nats."""
    seed: int = 0
    """Of its draw."""


Verifier = Callable[[Sequence[Sample], Sequence[Sample]], list[bool]]
"""From the candidates, and further samples of the same question that are no candidates, to which candidates are accepted."""


def exact(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
    """The gold answer itself: no false positives, and accuracy is pass@k."""
    return [sample.correct for sample in candidates]


def well_formed(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
    """An answer was found and is an integer."""
    return [sample.answer is not None and _is_integer(sample.answer) for sample in candidates]


def arithmetic(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
    """An answer was found, and every `a op b = c` of the text is right; at least one is there."""
    return [sample.answer is not None and sound(sample.text) for sample in candidates]


def sound(text: str) -> bool:
    """Whether all operations that a text states are right (to `TOLERANCE`), and there is one."""
    found = OPERATION.findall(text.replace(",", "").replace("$", ""))
    return bool(found) and all(_holds(*operation) for operation in found)


def agreement(threshold: float) -> Verifier:
    """The share of votes with the candidate's answer is at least `threshold`. A candidate never votes: it would accept itself."""

    def verify(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
        shares = [sum(vote.answer == sample.answer for vote in votes) / len(votes) for sample in candidates]
        return [sample.answer is not None and share >= threshold for sample, share in zip(candidates, shares, strict=True)]

    return verify


def confident(threshold: float) -> Verifier:
    """The mean log-probability per token is at least `threshold`."""

    def verify(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
        return [sample.logprob >= threshold for sample in candidates]

    return verify


def flipped(completeness: float, soundness: float) -> Verifier:
    """The gold answer with errors: P(accept | correct) = completeness, P(reject | wrong) = soundness; to test theory with.

    Errors are independent, and fixed by a sample's seed: the same in every run.
    """

    def verify(candidates: Sequence[Sample], votes: Sequence[Sample]) -> list[bool]:
        rates = [completeness if sample.correct else 1 - soundness for sample in candidates]
        draws = [Draws("verifier", sample.seed).below(RESOLUTION) for sample in candidates]
        return [draw < rate * RESOLUTION for draw, rate in zip(draws, rates, strict=True)]

    return verify


def parse(name: str) -> tuple[Verifier, int]:
    """The verifier of a name, and how many votes it needs; `UserError` for a name that is none."""
    kind, *values = name.split(":")
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = [float("nan")]
    plain = {"exact": exact, "format": well_formed, "arithmetic": arithmetic}
    if kind in plain and not values:
        return plain[kind], 0
    if kind == "flipped" and len(numbers) == 2:
        for value in numbers:
            number(f"task.verifiers={name}: a rate", value, 0, 1)
        return flipped(*numbers), 0
    if kind == "logprob" and len(numbers) == 1:
        number(f"task.verifiers={name}: the threshold", numbers[0], high=0)
        return confident(numbers[0]), 0
    if kind == "agreement" and len(numbers) == 2 and numbers[0] >= 1 and numbers[0].is_integer():
        number(f"task.verifiers={name}: the threshold", numbers[1], 0, 1, open_low=True)
        return agreement(numbers[1]), int(numbers[0])
    allowed = "exact, format, arithmetic, agreement:<votes>:<share>, logprob:<nats>, flipped:<completeness>:<soundness>"
    raise UserError(f"task.verifiers={name} is not allowed; allowed: {allowed}")


def _is_integer(answer: str) -> bool:
    try:
        return float(answer.replace(",", "").replace("$", "")).is_integer()
    except ValueError:
        return False


def _holds(left: str, operation: str, right: str, stated: str) -> bool:
    a, b = float(left), float(right)
    if operation == "/" and b == 0:
        return False
    result = {"+": a + b, "-": a - b, "/": a / b if b else 0.0}.get(operation, a * b)
    return abs(result - float(stated)) <= TOLERANCE
