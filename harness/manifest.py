"""What was asked for under a sweep's name: one file per distinct command in `<store>/.sweeps/<sweep>/`. Torch-free."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.nearmiss import unknown
from harness.store import SWEEPS
from methods.spec import UserError


@dataclass(frozen=True)
class Command:
    """One command of a sweep and the cells that it composed, in the order of its grid."""

    argv: tuple[str, ...]
    """The arguments of `parebench`."""
    written: float
    """Unix time."""
    cells: tuple[dict[str, Any], ...]
    """Each with `cell` (its id; empty for an impossible one), `label`, `overrides`, `state` when planned, `reason`."""


def names(root: Path) -> list[str]:
    """The sweeps of a store."""
    folder = root / SWEEPS
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def commands(root: Path, sweep: str) -> list[Command]:
    """The commands of a sweep, oldest first; `UserError` if there is no such sweep or a file of it is damaged."""
    if sweep not in names(root):
        raise UserError(f"{unknown('sweep', sweep, names(root), sign=' ')} (in the store {root}; give another with --store)")
    found = [_read(path) for path in sorted((root / SWEEPS / sweep).glob("*.json")) if not path.name.startswith(".")]
    return sorted(found, key=lambda command: command.written)


def distinct(asked: Iterable[Command]) -> list[dict[str, Any]]:
    """The cells of several commands once each, in the order of their first appearance, as the newest command has them."""
    cells: dict[Any, dict[str, Any]] = {}
    for command in asked:
        for cell in command.cells:
            if cell.get("state") != "duplicate":
                cells[cell["cell"] or (cell["label"], *cell["overrides"])] = cell
    return list(cells.values())


def _read(path: Path) -> Command:
    try:
        values = json.loads(path.read_text())
        return Command(tuple(values["argv"]), float(values["written"]), tuple(values["cells"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it and give the sweep's command again, finished cells are not lost"
        ) from error
