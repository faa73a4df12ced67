"""`parebench-sweep clean`: what of a store is not needed any more; never a record, never a cell that somebody runs. Torch-free."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import lease, manifest
from harness.status import folders, readable, records
from harness.store import SWEEPS, Store

CHECKPOINTS = "checkpoints of finished cells"
REPLACED = "folders that a forced run replaced"
ASIDE = "temporary files of writes that never ended"
MODELS = "models of finished cells"
OLD = 3600.0
"""Seconds after which a file written aside belongs to nobody."""
RESUME = ("checkpoints", "once", "unsealed.json")
"""What a cell needs to go on, and a finished one does not."""
BESIDE = ("adapter", "delta", "model.packed.safetensors")
"""What a cell leaves beside its exported model."""
REPLACED_FOLDER, SOURCES_FOLDER = ".replaced", ".sources"


@dataclass(frozen=True)
class Removal:
    """Something that can go."""

    kind: str
    path: Path
    bytes: int
    cell: str = ""
    """The cell whose folder it lies in; empty outside of cells."""


def removals(store: Store, cells: Iterable[str] | None, models: bool = False) -> list[Removal]:
    """What can go of these cells; None = of the whole store, with what lies outside of cells. `models` adds their exported models."""
    chosen = folders(store) if cells is None else sorted({cell for cell in cells if cell and store.folder(cell).is_dir()})
    needed = _needed(store) if models else set()
    found = [one for cell in chosen for one in _of_cell(store, cell, models and cell not in needed)]
    found += _replaced(store, None if cells is None else set(chosen))
    if cells is None:
        found += [one for name in (SWEEPS, SOURCES_FOLDER) for one in _aside(store.root / name)]
    return found


def remove(store: Store, found: Iterable[Removal]) -> int:
    """Remove what was found; the bytes that went. A cell that somebody has begun to run meanwhile is left alone."""
    gone = 0
    for one in found:
        if one.cell and lease.holder(store.folder(one.cell)) is not None:
            continue
        if one.path.is_dir() and not one.path.is_symlink():
            shutil.rmtree(one.path, ignore_errors=True)
        else:
            one.path.unlink(missing_ok=True)
        gone += one.bytes
    return gone


def by_kind(found: Iterable[Removal]) -> dict[str, tuple[int, int]]:
    """Kind -> how many and how many bytes."""
    sums: dict[str, tuple[int, int]] = {}
    for one in found:
        count, total = sums.get(one.kind, (0, 0))
        sums[one.kind] = count + 1, total + one.bytes
    return sums


def used(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as themselves."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum((Path(where) / name).lstat().st_size for where, _, names in os.walk(path) for name in names)


def dependencies(half: Mapping[str, Any]) -> set[str]:
    """The ids under `dependencies` of a recorded identity or a planned cell."""
    return set(_leaves(half.get("dependencies")))


def _of_cell(store: Store, cell: str, model: bool) -> Iterator[Removal]:
    folder = store.folder(cell)
    if lease.holder(folder) is not None:
        return
    if readable(store, cell) is not None:
        names = {CHECKPOINTS: RESUME, MODELS: ("model", *BESIDE) if model else ()}
        yield from (
            Removal(kind, folder / name, used(folder / name), cell) for kind, own in names.items() for name in own if _there(folder, name)
        )
    yield from _aside(folder, cell)


def _aside(folder: Path, cell: str = "") -> Iterator[Removal]:
    """Dot files and dot folders below `folder` that nobody has touched for an hour."""
    for where, below, names in os.walk(folder):
        for name in [*below, *names]:
            path = Path(where) / name
            if name.startswith(".") and time.time() - _touched(path) > OLD:
                yield Removal(ASIDE, path, used(path), cell)
        below[:] = [name for name in below if not name.startswith(".")]


def _touched(path: Path) -> float:
    """When the path, or the newest thing below it, was last changed."""
    below = [Path(where) / name for where, _, names in os.walk(path) for name in names] if path.is_dir() else []
    return max(one.lstat().st_mtime for one in [path, *below])


def _replaced(store: Store, cells: set[str] | None) -> Iterator[Removal]:
    aside = store.root / REPLACED_FOLDER
    for path in sorted(aside.iterdir()) if aside.is_dir() else ():
        if cells is None or path.name.rpartition("-")[0] in cells:
            yield Removal(REPLACED, path, used(path))


def _needed(store: Store) -> set[str]:
    """The cells that any record or any planned cell of the store depends on."""
    planned = [cell for name in manifest.names(store.root) for cell in manifest.distinct(manifest.commands(store.root, name))]
    return set().union(*(dependencies(one) for one in [*planned, *(record.identity for record in records(store))]))


def _there(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / name).is_symlink()


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(part)
