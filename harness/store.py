"""The store: one folder per cell id; the record is written last and atomically. Torch-free."""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.record import Record, from_json


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` of sorted, indented JSON; NaN and infinities are refused (`ValueError`)."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


SWEEPS = ".sweeps"


class Store:
    """`root/<cell id>/`: config.json, history.jsonl, evals/, record.json, log.txt, checkpoints/, optional model/."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def folder(self, cell: str) -> Path:
        """The folder of one cell (not created)."""
        return self.root / cell

    def record(self, cell: str) -> Record | None:
        """The record of a finished cell, or None where there is none; `ValueError` if its file is damaged."""
        path = self.folder(cell) / "record.json"
        if not path.exists():
            return None
        try:
            return from_json(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); move it away or run the cell with run.force=true") from error

    def write(self, record: Record) -> None:
        """Write the record; the last act of a cell."""
        write_json(self.folder(record.cell) / "record.json", record.to_json())

    def join(self, sweep: str, cells: Iterable[str]) -> None:
        """Note that cells belong to a sweep, whichever sweep ran them first."""
        for cell in cells:
            target = self.root / SWEEPS / sweep / cell
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()

    def members(self, sweep: str) -> set[str]:
        """The cells that `join` noted."""
        return {path.name for path in (self.root / SWEEPS / sweep).glob("*")}

    def records(self) -> Iterator[Record]:
        """All finished cells, in the order of their ids."""
        for path in sorted(self.root.glob("*/record.json")):
            record = self.record(path.parent.name)
            if record is not None:
                yield record
