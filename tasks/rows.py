"""Parts of a split: prefixes and fixed random subsets, each named and hashed like a split of its own."""

import hashlib
from dataclasses import replace

from tasks.base import Rows
from tasks.hashing import content_hash

SPLIT_SEED = 20240
"""Of every subset drawn here: independent of a run's seed, so that all cells share the same rows."""


def part(rows: Rows, indices: list[int], split: str) -> Rows:
    """The rows at `indices`, in that order, under the name `split`; `official` still tells about the split they were taken from."""
    data = rows.data.select(indices)
    return replace(rows, data=data, split=split, sha256=content_hash(data.with_format("arrow")[:]), whole=rows.whole or rows.sha256)


def first(rows: Rows, limit: int | None) -> Rows:
    """The first `limit` rows; all of them, unchanged, for None."""
    if limit is None:
        return rows
    size = min(limit, len(rows.data))
    return part(rows, list(range(size)), f"{rows.split}[:{size}]")


def divide(rows: Rows, size: int, name: str) -> tuple[Rows, Rows]:
    """A fixed random subset of `size` rows called `name`, and the rest; both keep the order of the rows.

    The draw takes the rows whose index has the smallest hash: the same on every platform and library version.
    """
    order = sorted(range(len(rows.data)), key=lambda i: hashlib.sha256(f"{SPLIT_SEED}/{i}".encode()).digest())
    label = f"{name}(seed {SPLIT_SEED}, {size} rows)"
    drawn = part(rows, sorted(order[:size]), f"{label} of {rows.split}")
    return drawn, part(rows, sorted(order[size:]), f"{rows.split} minus {label}")
