"""What a store's cells say, read once: `<store>/.index/` keeps their rows and predictions, so that thousands of records load in a moment.

It is a cache and never trusted over the records: a cell's entry counts only while every file that it was made from has the size and
the time stamps that it had then. What was written in the last moments is not kept (a clock tick may hold two writes), nor is anything
that could not be read. Another version of the code that makes rows, a damaged index or none are the same: the records are read. Only
a store that sweeps write to has one; a folder of copied or committed records, or one that is not ours to write, is left as it is.
Writers replace whole files, so two at once cost one of them its entries and no reader anything.
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import rows as maker
from harness import record, registry
from harness.store import SWEEPS

log = logging.getLogger(__name__)

FOLDER = ".index"
SETTLED = 2.0
"""Seconds after which a file's time stamps are taken to tell its content."""
Stamp = tuple[str, int, int, int]
"""A file: its path in the cell's folder, size, times of its last change in nanoseconds (of content, of inode)."""


@dataclass(frozen=True)
class Entry:
    """What is kept of one cell."""

    stamps: tuple[Stamp, ...]
    rows: str
    """JSON: rows of the frame."""


@dataclass
class Index:
    """The entries of one store; open it with `opened`."""

    store: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    changed: bool = False

    def rows(self, cell: str, file: str) -> list[dict[str, Any]] | None:
        """The rows of a cell that were made from `file` first, where all its files are as they were then; else None: read them."""
        entry = self.entries.get(cell)
        if entry is None or entry.stamps[0][0] != file or not self._holds(cell, entry):
            return None
        return json.loads(entry.rows)

    @property
    def wanted(self) -> bool:
        """Sweeps write to this store, so it may have an index."""
        return (self.store / SWEEPS).is_dir()

    def keep(self, cell: str, files: Iterable[str], rows: Sequence[Mapping[str, Any]], began: float) -> bool:
        """Note the rows that were made from `files` of the cell's folder, whose reading began at `began` (`time.time`).

        False where the files are too young to be told from what may replace them.
        """
        self.forget(cell)
        stamps = tuple(stamp(self.store / cell, file) for file in files)
        if None not in stamps and all(max(times) < (began - SETTLED) * 1e9 for _, _, *times in stamps):
            self.entries[cell] = Entry(stamps, json.dumps(rows))
            self.changed = True
        return cell in self.entries

    def forget(self, cell: str) -> None:
        """Drop the entry of a cell, if there is one."""
        self.changed |= self.entries.pop(cell, None) is not None

    def save(self, cells: Iterable[str]) -> None:
        """Write the entries of the cells that exist, where something has changed."""
        there = set(cells)
        kept = {cell: entry for cell, entry in self.entries.items() if cell in there}
        if not (self.changed or len(kept) < len(self.entries)):
            return
        columns = {
            "cell": list(kept), "stamps": [json.dumps(entry.stamps) for entry in kept.values()],
            "rows": [entry.rows for entry in kept.values()],
        }  # fmt: skip
        write(self.store / FOLDER / "rows.parquet", pa.table(columns))

    def _holds(self, cell: str, entry: Entry) -> bool:
        folder = f"{self.store}/{cell}"
        return all(stamp(folder, known[0]) == known for known in entry.stamps)


def opened(store: Path) -> Index:
    """The index of a store; empty where there is none that can be used."""
    table = read(store / FOLDER / "rows.parquet")
    if table is None:
        return Index(store)
    lines = zip(*(table[name].to_pylist() for name in ("cell", "stamps", "rows")), strict=True)
    return Index(store, {cell: Entry(tuple(map(tuple, json.loads(stamps))), rows) for cell, stamps, rows in lines})


def stamp(folder: Path | str, file: str) -> Stamp | None:
    """The stamp of a file as it is now; None where there is none."""
    try:
        status = os.stat(f"{folder}/{file}")  # noqa: PTH116 - tens of thousands of them
    except OSError:
        return None
    return file, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def read(path: Path) -> pa.Table | None:
    """A table of an index; None where there is none, where it is damaged, and where other code made it."""
    try:
        table = pq.read_table(path, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        if path.exists():
            log.info("%s is not used (%s); the records are read instead", path, error)
        return None
    made_by = (table.schema.metadata or {}).get(b"made_by", b"").decode()
    return table if made_by == version() else None


def write(path: Path, table: pa.Table) -> None:
    """Replace a table of an index; a folder that cannot be written keeps what it has."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table.replace_schema_metadata({"made_by": version()}), aside, compression="zstd")
        aside.replace(path)
    except OSError as error:
        log.info("%s was not written (%s); the records are read again next time", path, error)
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


@cache
def version() -> str:
    """Changes with the code that makes rows and packs predictions: a hash of its sources."""
    own = [Path(__file__), Path(__file__).with_name("packed.py")]
    sources = [Path(module.__file__) for module in (maker, record, registry)]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in own + sources)).hexdigest()[:16]
