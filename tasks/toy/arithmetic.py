"""Word problems with worked solutions, in the columns of GSM8K; written here, infinite by seed.

The pair of numbers that a step combines is either for training or for the test, whatever its order and its operation: a step of a
test problem was never seen in training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tasks.toy.draws import Draws, kept_back

LARGEST = 999
"""No result is larger."""
TRIES = 50
NAMES = ("Ann", "Ben", "Kim", "Tom")
PHRASES = {"+": ("gets {}", "buys {}"), "-": ("sells {}", "loses {}"), "*": ("has {} times that",)}


@dataclass(frozen=True)
class Level:
    """How hard problems are."""

    operations: int
    signs: str
    largest: int
    """Of the numbers given."""
    factor: int = 0
    """Largest number to multiply by."""
    digits: int = 2
    """Numbers in solutions are filled up with zeros to so many."""


LEVELS = {1: Level(2, "+-", 20), 2: Level(3, "+-", 50), 3: Level(4, "+-*", 99, factor=9, digits=3)}


@dataclass(frozen=True)
class Step:
    """One operation of a worked solution."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """What it comes to."""
        return {"+": self.left + self.right, "-": self.left - self.right, "*": self.left * self.right}[self.sign]

    def text(self, digits: int) -> str:
        """As a line of a solution, in numbers of at least `digits` digits, so that their places stand under each other."""
        left, right, result = (f"{number:0{digits}d}" for number in (self.left, self.right, self.result))
        return f"{left}{self.sign}{right}={result}"


@cache
def for_test(left: int, right: int) -> bool:
    """Whether the two numbers, in either order, are combined in test problems alone."""
    low, high = sorted((left, right))
    return kept_back(f"pair {low} {high}")


def rows(difficulty: int, split: str, seed: int) -> Iterator[dict[str, str]]:
    """Problems without end, of the split `train` or of one to evaluate on.

    `question`, and `answer`: one line per step, then `#### <number>`.
    """
    draws = Draws(f"arithmetic-{difficulty}", split, seed)
    while True:
        level = LEVELS[difficulty]
        steps = _steps(draws, level, split != "train")
        if steps is not None:
            lines = [step.text(level.digits) for step in steps]
            yield {"question": _question(draws, steps), "answer": "\n".join([*lines, f"#### {steps[-1].result}"])}


def _steps(draws: Draws, level: Level, test: bool) -> list[Step] | None:
    """A chain of steps; None where it came to a number that has no partner."""
    steps: list[Step] = []
    value = draws.below(level.largest + 1)
    for _ in range(level.operations):
        step = _step(draws, level, value, test)
        if step is None:
            return None
        steps.append(step)
        value = step.result
    return steps


def _step(draws: Draws, level: Level, value: int, test: bool) -> Step | None:
    for _ in range(TRIES):
        sign = draws.pick(level.signs)
        step = Step(value, sign, 2 + draws.below(level.factor - 1) if sign == "*" else draws.below(level.largest + 1))
        if 0 <= step.result <= LARGEST and for_test(step.left, step.right) == test:
            return step
    return None


def _question(draws: Draws, steps: list[Step]) -> str:
    happenings = [draws.pick(PHRASES[step.sign]).format(step.right) for step in steps]
    start = f"{draws.pick(NAMES)} has {steps[0].left}"
    return f"{', '.join([start, *happenings])}. Now?"
