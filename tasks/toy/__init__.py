"""Data sets made here, none of them named after a real benchmark. Torch-free; every split has no end and depends on a seed."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tasks.toy import arithmetic, corpus, sentences

GENERATORS: dict[str, Callable[[str, int], Iterator[dict[str, Any]]]] = {
    **{f"toy/{name}": partial(sentences.rows, name) for name in sentences.MAKERS},
    **{f"toy/arithmetic-{level}": partial(arithmetic.rows, level) for level in arithmetic.LEVELS},
    "toy/corpus": corpus.documents,
}
"""Name -> rows without end of a (split, seed)."""
