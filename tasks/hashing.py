"""Hashes of content: of a whole split, and of one example. The same wherever the rows came from."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase


def content_hash(table: pa.Table) -> str:
    """Sha256 (hex) over the columns in the order of their names and their values as JSON; independent of format and row groups."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        digest.update(_json([name, table[name].to_pylist()]))
    return digest.hexdigest()


def example_hash(document: dict[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of a document's input fields as canonical JSON."""
    return hashlib.sha256(_json(document)).hexdigest()[:16]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """The first 16 hex digits of the sha256 of all that decides how a tokenizer cuts text: vocabulary, merges, rules, special tokens.

    Padding and truncation are left out: they are settings of a call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hashlib.sha256(_json([type(tokenizer).__name__, tokenizer.get_vocab()])).hexdigest()[:16]
    rules = json.loads(backend.to_str())
    return hashlib.sha256(_json({key: value for key, value in rules.items() if key not in ("padding", "truncation")})).hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
