"""The store: one folder per cell id; the record is written last and atomically. Torch-free."""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.record import Record, from_json

SWEEPS = ".sweeps"
REPLACED = ".replaced"
ADHOC = "adhoc"
"""Name of a sweep without a name."""
MEASURED = "evals"
"""Folder of a cell whose files the record vouches for."""
_CHECKSUM = re.compile(r'"checksum": "([0-9a-f]{64})"')


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` so that a reader sees the whole file or none of it; `durable` = it survives a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    aside.replace(path)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`write_atomically` of sorted, indented JSON; NaN and infinities are refused (`ValueError`)."""
    write_atomically(path, _text(value), durable=durable)


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """`root/<cell id>/`: config.json, attempts/, history.jsonl, evals/, record.json, log.txt, checkpoints/, optional model/."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def folder(self, cell: str) -> Path:
        """The folder of one cell (not created)."""
        return self.root / cell

    def record(self, cell: str) -> Record | None:
        """The record of a finished cell, or None where there is none; `ValueError` if its file is damaged."""
        path = self.folder(cell) / "record.json"
        try:
            text = path.read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise _damaged(path, error) from error
        try:
            record = from_json(json.loads(text))
            _verify(text)
            return record
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error

    def has_record(self, cell: str) -> bool:
        """Is there a record file, whole or damaged?"""
        return (self.folder(cell) / "record.json").exists()

    def write(self, record: Record) -> None:
        """Write the record, with the sizes and hashes of what it vouches for; the last act of a cell."""
        folder = self.folder(record.cell)
        record.files = {
            path.relative_to(folder).as_posix(): [path.stat().st_size, file_hash(path)]
            for path in sorted((folder / MEASURED).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        record.checksum = hashlib.sha256(_text({**record.to_json(), "checksum": ""}).encode()).hexdigest()
        write_json(folder / "record.json", record.to_json())

    def damage(self, record: Record) -> str | None:
        """What is wrong with the files that a record vouches for: `evals/x.parquet is missing`; None if they are whole."""
        folder = self.folder(record.cell)
        for name, (size, digest) in record.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or file_hash(path) != digest:
                return f"{name} has changed since it was measured"
        return None

    def set_aside(self, cell: str) -> Path | None:
        """Move a cell's folder under `.replaced/`, where nothing reads it; its new place, None where there was no folder."""
        folder, aside = self.folder(cell), self.root / REPLACED
        if not folder.exists():
            return None
        aside.mkdir(exist_ok=True)
        numbers = [int(path.name.rpartition("-")[2]) for path in self.replaced(cell)]
        return folder.rename(aside / f"{cell}-{1 + max(numbers, default=0)}")

    def replaced(self, cell: str) -> list[Path]:
        """The folders of a cell that were set aside, the newest last."""
        folders = (self.root / REPLACED).glob(f"{cell}-*")
        return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))

    def join(self, sweep: str | None, argv: Sequence[str], cells: Sequence[dict[str, Any]]) -> None:
        """Note the cells of a sweep, one file for each distinct command.

        Each cell: see `harness.plan.Planned.describe`.
        """
        body = {"sweep": sweep or ADHOC, "argv": list(argv), "written": time.time(), "cells": list(cells)}
        members = json.dumps([body["argv"], [cell["cell"] for cell in cells]])
        name = hashlib.sha256(members.encode()).hexdigest()[:12]
        write_json(self.root / SWEEPS / body["sweep"] / f"{name}.json", body)

    def members(self, sweep: str) -> set[str]:
        """Ids of a sweep's possible cells, whichever sweep ran them (`harness.manifest` reads the rest)."""
        files = (self.root / SWEEPS / sweep).glob("*.json")
        return {cell["cell"] for path in files for cell in json.loads(path.read_text())["cells"] if cell["cell"]}

    def records(self, cells: Iterable[str] | None = None) -> Iterator[Record]:
        """All finished cells (of those named), in the order of their ids."""
        names = sorted(path.parent.name for path in self.root.glob("*/record.json")) if cells is None else sorted(cells)
        for name in names:
            record = self.record(name)
            if record is not None:
                yield record


def remove(path: Path) -> None:
    """Delete a file or a folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _text(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _verify(text: str) -> None:
    """`ValueError` unless the text has the checksum that it states; records from before there was one state none."""
    stated = _CHECKSUM.search(text)
    if stated is None:
        return
    blank = text[: stated.start(1)] + text[stated.end(1) :]
    if hashlib.sha256(blank.encode()).hexdigest() != stated.group(1):
        raise ValueError("its checksum does not fit")


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged ({error}); move it away or run the cell with run.force=true")
