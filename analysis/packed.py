"""The numbers of all per-example predictions of a store in one file of its index, since opening thousands of parquet files takes a minute.

Kept are the examples' keys and every numeric column, each in the smallest type that gives back its bytes; texts stay in their files.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from analysis import index

FILE = "predictions.parquet"
SMALLER = ("i1", "i4", "f4")
SCHEMA = pa.schema([
    ("cell", pa.string()), ("file", pa.string()), ("size", pa.int64()), ("content", pa.int64()), ("inode", pa.int64()),
    ("examples", pa.dictionary(pa.int32(), pa.string())), ("columns", pa.dictionary(pa.int32(), pa.string())),
    ("data", pa.large_binary()),
])  # fmt: skip
"""`content`, `inode`: the times of `analysis.index.Stamp`; `columns`: name -> type, type as stored, number of values; `data`: theirs."""


class Packed:
    """The packed predictions of one store."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.table = index.read(store / index.FOLDER / FILE)
        if self.table is None:
            self.table = SCHEMA.empty_table()
        self.table = self.table.unify_dictionaries().combine_chunks()
        names = zip(self.table["cell"].to_pylist(), self.table["file"].to_pylist(), strict=True)
        self.places = {name: i for i, name in enumerate(names)}
        self.stamps = np.stack([self.table[name].to_numpy() for name in ("size", "content", "inode")], axis=1).tolist()
        self.columns = self.table["columns"].to_pylist()
        examples, data = (self.table[name].combine_chunks() for name in ("examples", "data"))
        self.texts, self.whose = examples.dictionary.to_pylist(), examples.indices.to_numpy()
        _, starts, self.data = data.buffers()
        self.starts = np.frombuffer(starts, np.int64)[data.offset :] if len(data) else np.zeros(0, np.int64)

    def get(self, cell: str, file: str) -> dict[str, NDArray] | None:
        """The columns of one file, `example` among them, where the file is as it was when it was packed; else None: read it."""
        place = self.places.get((cell, file))
        if place is None or index.stamp(f"{self.store}/{cell}", file) != (file, *self.stamps[place]):
            return None
        columns, at = {"example": _examples(self.texts[self.whose[place]])}, int(self.starts[place])
        for name, kind, stored, number in _header(self.columns[place]):
            columns[name] = np.frombuffer(self.data, stored, number, at).astype(kind)
            at += number * stored.itemsize
        return columns

    def add(self, new: Mapping[tuple[str, str], "Line"], cells: Iterable[str]) -> None:
        """Write the pack with these files, without those of other cells than `cells`."""
        lines = [(cell, file, *line.stamp[1:], line.examples, line.columns, line.data) for (cell, file), line in new.items()]
        added = pa.table(dict(zip(SCHEMA.names, map(list, zip(*lines, strict=True)), strict=True)), SCHEMA) if lines else None
        keys = pa.array([f"{cell}/{file}" for cell, file in self.places], pa.string())
        again = pa.array([f"{cell}/{file}" for cell, file in new], pa.string())
        old = pc.and_(pc.is_in(self.table["cell"], pa.array(list(cells), pa.string())), pc.invert(pc.is_in(keys, again)))
        kept = self.table.filter(old)
        index.write(self.store / index.FOLDER / FILE, pa.concat_tables([kept, added] if added else [kept]).unify_dictionaries())


@dataclass(frozen=True)
class Line:
    """One file, packed."""

    stamp: index.Stamp
    examples: str
    columns: str
    data: bytes


def pack(folder: Path, file: str) -> Line | None:
    """The predictions in a cell's folder, packed; None where they cannot be read."""
    stamp = index.stamp(folder, file)
    try:
        table = pd.read_parquet(folder / file)
    except (OSError, ValueError):
        return None  # whoever needs them says so
    numeric = {
        name: table[name].to_numpy() for name in table if isinstance(table[name].dtype, np.dtype) and table[name].dtype.kind in "biuf"
    }
    small = {name: _smallest(values) for name, values in numeric.items()}
    columns = [(name, numeric[name].dtype.str, values.dtype.str, len(values)) for name, values in small.items()]
    examples = json.dumps(table["example"].astype(str).tolist())
    return Line(stamp, examples, json.dumps(columns), b"".join(values.tobytes() for values in small.values()))


def _smallest(values: NDArray) -> NDArray:
    for kind in SMALLER:
        with np.errstate(all="ignore"):
            small = values.astype(kind)
            if small.itemsize < values.itemsize and small.astype(values.dtype).tobytes() == values.tobytes():
                return small
    return np.ascontiguousarray(values)


@lru_cache(maxsize=256)
def _header(text: str) -> list[tuple[str, np.dtype, np.dtype, int]]:
    """Name, type, type as stored and number of values of each column."""
    return [(name, np.dtype(kind), np.dtype(stored), number) for name, kind, stored, number in json.loads(text)]


@lru_cache(maxsize=256)
def _examples(text: str) -> NDArray:
    return np.array(json.loads(text), dtype=object)
