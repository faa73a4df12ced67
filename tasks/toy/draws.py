"""Random draws that are the same on every platform and Python version."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws seeded by text. Python promises the sequence of `random()` alone, so all else is made from it."""

    def __init__(self, *seed: object) -> None:
        self._random = random.Random("/".join(map(str, seed))).random

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1."""
        return int(self._random() * n)

    def pick(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def some(self, values: Sequence[T], size: int) -> list[T]:
        """Different values, in random order."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(size)]


def kept_back(text: str, one_in: int = 5) -> bool:
    """Whether something named by `text` is for the test alone: one in `one_in`, the same whatever the seed."""
    return hashlib.sha256(text.encode()).digest()[0] % one_in == 0
