"""Redundancy of chains of thought (arXiv 2508.02178): how much of a solution comes after, or says nothing new before, its answer.

FCS = first correct solution, the shortest prefix of sentences that states the gold answer as a conclusion. External redundancy ERD =
tokens after the FCS / all tokens. Internal redundancy IRD = mean cosine of consecutive windows of w sentences within the FCS. Both are
undefined (None, never 0) where the final answer is wrong. The paper's own detector is not published: cue and window are choices here.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 3
"""w, sentences of a window."""
LOW_GAIN = 0.9
"""theta: two windows closer than that say the same."""
CUE = re.compile(r"answer is|answer:|=|\\boxed|therefore|\bso\b|thus|hence|####", re.IGNORECASE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
ENDS = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+")
"""Between sentences: a line break, or a space after final punctuation (a decimal point has none)."""


def sentences(text: str) -> list[str]:
    """The sentences of a text, without outer space; none is empty."""
    return [part.strip() for part in ENDS.split(text) if part.strip()]


def first_correct(steps: Sequence[str], gold: str, question: str = "") -> int | None:
    """How many sentences the FCS has; None where no sentence concludes the gold number.

    A sentence counts with a cue and the gold number in it; a number that the question already gives counts only after the cue.
    """
    given = _numbers(question)
    value = _value(gold)
    for i, step in enumerate(steps):
        cues = list(CUE.finditer(step))
        text = step[cues[0].end() :] if cues and value in given else step
        if cues and value is not None and value in _numbers(text):
            return i + 1
    return None


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
    """IRD of the windows' embeddings, as (IRD - base) / (1 - base); None for fewer than two windows.

    `base`: the mean cosine of windows of different problems, which short windows share whatever they say.
    """
    if len(embeddings) < 2:
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

    tokens: int
    fcs_tokens: int | None
    erd: float | None
    fcs: str | None
    """The text of the FCS."""


def measured(text: str, gold: str, correct: bool, question: str, count: Callable[[str], int]) -> Redundancy:
    """FCS and ERD of a solution; `count` gives the tokens of a text under the measured model's tokenizer."""
    steps = sentences(text)
    sizes = [count(step) for step in steps]
    first = first_correct(steps, gold, question) if correct else None
    if first is None or not sum(sizes):
        return Redundancy(sum(sizes), None, None, None)
    return Redundancy(sum(sizes), sum(sizes[:first]), external(sizes, first), "\n".join(steps[:first]))


def _numbers(text: str) -> set[float]:
    return {value for found in NUMBER.findall(text) if (value := _value(found)) is not None}


def _value(text: str) -> float | None:
    try:
        return float(text.replace(",", "").replace("$", "").rstrip("."))
    except ValueError:
        return None
