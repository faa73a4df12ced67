"""Hashes of content: of a whole split, and of one example. The same wherever the rows came from."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


def content_hash(table: pa.Table) -> str:
    """Sha256 (hex) over the columns in the order of their names and their values as JSON; independent of format and row groups."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        digest.update(_json([name, table[name].to_pylist()]))
    return digest.hexdigest()


def example_hash(document: dict[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of a document's input fields as canonical JSON."""
    return hashlib.sha256(_json(document)).hexdigest()[:16]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
