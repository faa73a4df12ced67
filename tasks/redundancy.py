"""Redundancy of chains of thought (arXiv 2508.02178): how much of a solution comes after, or says nothing new before, its answer.

FCS = first correct solution, the shortest prefix of sentences that states the gold answer as a conclusion. External redundancy ERD =
tokens after the FCS / all tokens. Internal redundancy IRD = mean cosine of consecutive windows of w sentences within the FCS. Both are
undefined (None, never 0) where the final answer is wrong. The paper's own detector is not published: cue and window are choices here.

A worked solution of a data set is its own FCS, and is found to be for 93 % of GSM8K's test set; in the others an intermediate result
equals the answer, or a remark follows it. Any sentence with a cue that holds the number somewhere would give 88 %: operands are no
conclusions.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

WINDOW = 3
"""w, sentences of a window."""
LOW_GAIN = 0.9
"""theta: two windows closer than that say the same."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
CALCULATOR = re.compile(r"<<[^<>]*>>")
"""Annotations of GSM8K, which say again what stands beside them."""
RESULT = re.compile(rf"=\s*[^\w\s-]{{0,2}}\s*({NUMBER.pattern})(?![\d,.]*\s*[-+*/x×÷]\s*\d)")  # noqa: RUF001
"""A number right after an equals sign, a currency between them at most, that begins no further expression."""
STATED = re.compile(r"answer is|answer:|\\boxed|####", re.IGNORECASE)
THEREFORE = re.compile(r"\b(?:therefore|so|thus|hence)\b", re.IGNORECASE)
FINAL = re.compile(rf"(?:####|(?:the )?(?:final )?answer(?: is)?:?)[^\w-]*({NUMBER.pattern})\W*", re.IGNORECASE)
"""A sentence that states an answer and nothing else, as training formats end."""
ENDS = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
"""Between sentences: a line break, or a space after final punctuation (a decimal point has none)."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, without outer space; none is empty."""
    return [part.strip() for part in ENDS.split(text) if part.strip()]


def concluded(step: str, given: Set[float] = frozenset()) -> set[float]:
    """The numbers that a sentence concludes: results of equations, what is stated as the answer, and what follows a "therefore".

    After a mere "therefore" without an equation, numbers that the question has `given` do not count: they are copied.
    """
    text = CALCULATOR.sub("", step)
    found = {_value(number) for number in RESULT.findall(text)}
    if stated := STATED.search(text):
        found |= _numbers(text[stated.end() :])
    elif "=" not in text and (therefore := THEREFORE.search(text)):
        found |= _numbers(text[therefore.end() :]) - given
    return found


def first_correct(steps: Sequence[str], gold: str, question: str = "") -> int | None:
    """How many sentences the FCS has; None where no sentence concludes the gold number.

    Sentences directly after it that only state the answer (`#### 12`, "The answer is: 12") are the format of the answer and belong to it.
    """
    value, given = _value(gold), _numbers(question)
    size = next((i + 1 for i, step in enumerate(steps) if value in concluded(step, given)), None)
    while size is not None and size < len(steps) and (final := FINAL.fullmatch(steps[size])) and _value(final.group(1)) == value:
        size += 1
    return size


def external(tokens: Sequence[int], first: int) -> float:
    """ERD of a solution whose sentences have these token counts and whose FCS has `first` of them."""
    return sum(tokens[first:]) / sum(tokens)


def windows(steps: Sequence[str], width: int = WINDOW) -> list[str]:
    """`width` consecutive sentences as one text, from each sentence on; none where there are fewer."""
    return [" ".join(steps[i : i + width]) for i in range(len(steps) - width + 1)]


def gains(embeddings: NDArray) -> NDArray:
    """u_k = cos(e_k, e_(k + 1)) of consecutive rows, shape (windows - 1,)."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.where(norms > 0, norms, 1)
    return (unit[:-1] * unit[1:]).sum(axis=1)


def internal(embeddings: NDArray, base: float = 0.0) -> float | None:
    """IRD of the windows' embeddings, as (IRD - base) / (1 - base); None for fewer than two windows, or where nothing differs.

    `base`: the mean cosine of windows of different problems, which short windows share whatever they say.
    """
    if len(embeddings) < 2 or base >= 1:
        return None
    return (float(gains(embeddings).mean()) - base) / (1 - base)


def low_gain(embeddings: NDArray, theta: float = LOW_GAIN) -> float | None:
    """Share of consecutive windows closer than theta; None for fewer than two windows."""
    return float((gains(embeddings) > theta).mean()) if len(embeddings) > 1 else None


def baseline(groups: Sequence[NDArray]) -> float:
    """Mean cosine of windows of different problems: every problem's mean unit vector against each other's. 0 for fewer than two."""
    unit = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in groups if len(g)]
    means = np.array([u.mean(axis=0) for u in unit])
    if len(means) < 2:
        return 0.0
    similar = means @ means.T
    return float((similar.sum() - np.trace(similar)) / (len(means) * (len(means) - 1)))


def distinct(ids: Sequence[int], n: int = 3) -> float | None:
    """Share of different n-grams among all of a sequence; None where it has none."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def longest_repeat(ids: Sequence[int]) -> int:
    """Length of the longest n-gram that occurs twice (the two may overlap)."""
    low, high = 0, max(0, len(ids) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        grams = [tuple(ids[i : i + middle]) for i in range(len(ids) - middle + 1)]
        low, high = (middle, high) if len(set(grams)) < len(grams) else (low, middle - 1)
    return low


def compression(text: str) -> float | None:
    """Bytes after zlib over bytes before; None for an empty text."""
    data = text.encode()
    return len(zlib.compress(data, 9)) / len(data) if data else None


@dataclass(frozen=True)
class Redundancy:
    """What is measured of one solution; None = undefined."""

    ids: list[int]
    """Tokens of its sentences."""
    text: str
    fcs_tokens: int | None = None
    erd: float | None = None
    fcs: str | None = None
    """The text of the FCS, a sentence a line."""

    @property
    def windows(self) -> list[str]:
        """Those of the FCS; none where there is no FCS."""
        return windows(sentences(self.fcs)) if self.fcs else []


def measured(text: str, gold: str, correct: bool, question: str, encode: Callable[[str], list[int]]) -> Redundancy:
    """FCS and ERD of a solution; `encode` gives the tokens of a text under the measured model's tokenizer."""
    steps = sentences(text)
    tokens = [encode(step) for step in steps]
    ids, whole = [token for step in tokens for token in step], "\n".join(steps)
    first = first_correct(steps, gold, question) if correct else None
    if first is None or not ids:
        return Redundancy(ids, whole)
    sizes = [len(step) for step in tokens]
    return Redundancy(ids, whole, sum(sizes[:first]), external(sizes, first), "\n".join(steps[:first]))


@dataclass(frozen=True)
class Windows:
    """Embedded windows of the FCS of each solution, by problem: `embeddings[problem][solution]` of shape (windows, size)."""

    embeddings: Sequence[Sequence[NDArray]]

    @cached_property
    def base(self) -> float:
        """See `baseline`."""
        return baseline([np.concatenate(kept) for own in self.embeddings if (kept := [e for e in own if len(e)])])

    def internal(self) -> list[list[float | None]]:
        """IRD by problem and solution."""
        return [[internal(e, self.base) for e in own] for own in self.embeddings]

    def low_gain(self) -> float:
        """Mean over the solutions."""
        return mean(low_gain(e) for own in self.embeddings for e in own)


def summary(solutions: Sequence[Sequence[Redundancy]], embedded: Windows, correct: int, budgets: Sequence[int]) -> dict[str, float]:
    """Means over the solutions (by problem) that have an FCS, out of `correct` with the right answer; NaN where there is none.

    `coverage`: share of the correct ones that have an FCS. `undefined_ird`: share of those with an FCS that is too short for an IRD.
    `tokens_per_correct`: tokens of all solutions per correct one. `accuracy_at_<b>`: share of all whose FCS ends within b tokens.
    """
    every = [one for own in solutions for one in own]
    known = [one for one in every if one.fcs_tokens is not None]
    ird = [value for own in embedded.internal() for value in own]
    return {
        "erd": mean(one.erd for one in known),
        "ird": mean(ird),
        "low_gain": embedded.low_gain(),
        "base": embedded.base,
        "tokens": mean(len(one.ids) for one in known),
        "fcs_tokens": mean(one.fcs_tokens for one in known),
        "distinct3": mean(distinct(one.ids) for one in known),
        "longest_repeat": mean(longest_repeat(one.ids) for one in known),
        "compression": mean(compression(one.text) for one in known),
        "coverage": _share(len(known), correct),
        "undefined_ird": _share(len(known) - sum(value is not None for value in ird), len(known)),
        "tokens_per_correct": _share(sum(len(one.ids) for one in every), correct),
    } | {f"accuracy_at_{b}": mean(one.fcs_tokens is not None and one.fcs_tokens <= b for one in every) for b in budgets}


def mean(values: Iterable[float | None]) -> float:
    """Mean of those that are defined; NaN where none is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _numbers(text: str) -> set[float]:
    return {value for found in NUMBER.findall(text) if (value := _value(found)) is not None}


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", "").replace("$", "").rstrip("."))
    except ValueError:
        return None
