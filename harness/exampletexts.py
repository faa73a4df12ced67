"""The texts of evaluated examples, found again by their hashes in data that is on this machine. Torch-free; asks no network."""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from methods.spec import UserError
from tasks.hashing import example_hash
from tasks.sources import Sources

TOGETHER = 3
"""Most columns that the tasks hash together as one example."""


def texts(rows: Mapping[str, Any], wanted: Collection[str], data_dir: Path | None, assets: Path) -> dict[str, str]:
    """Hash -> text of the `wanted` examples; those that are not found, or whose task makes its inputs otherwise, are left out.

    Args:
        rows: what the record keeps of the evaluated rows (`tasks.base.Rows.describe`): `dataset`, and `split` as in `validation[:8]`.
        wanted: the column `example` of predictions.
        data_dir: a local data folder, or None.
        assets: the folder of prefetched assets.
    """
    sources, missing, found = Sources(data_dir, assets, offline=True), set(wanted), {}
    for split in _splits(sources, str(rows.get("dataset")), str(rows.get("split"))):
        for document in _documents(sources.table(str(rows["dataset"]), split)):
            if (digest := example_hash(document)) in missing:
                found[digest] = " | ".join(document.values())
                missing.discard(digest)
    return found


def _splits(sources: Sources, dataset: str, described: str) -> Iterator[str]:
    """The splits that a description of rows names and that are here."""
    for name in dict.fromkeys(re.findall(r"\w+", described)):
        try:
            if sources.has(dataset, name):
                yield name
        except UserError:
            continue  # a word of the description that is no split


def _documents(table: Any) -> Iterator[dict[str, str]]:
    """Every row, by each choice of its text columns."""
    columns = [name for name in table.column_names if str(table.schema.field(name).type) in ("string", "large_string")]
    choices = [names for size in range(1, TOGETHER + 1) for names in itertools.combinations(columns, size)]
    for row in table.select(columns).to_pylist():
        for names in choices:
            if all(isinstance(row[name], str) for name in names):
                yield {name: row[name] for name in names}
