"""Which code made what lies in an unfinished cell's folder: what other code made is moved aside and never resumed. Torch-free."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.record import NUMERICS
from harness.store import Store, write_json

FILE = "made_by.json"
PARTS = ("checkpoints", "once", "evals", "model", "unsealed.json", "history.jsonl", "progress.json")


def claim(folder: Path, sources: Mapping[str, str], needs: Mapping[str, Any]) -> Path | None:
    """Note that this code goes on with the cell; where other code began it, its work goes to the folder that is returned.

    `sources`: hashes of the method's files; `needs`: name -> `Store` entry of each cell it is made from (`dependencies`).
    """
    made_from = {name: need["weights"] or need["checksum"] for name, need in needs.items()}
    mine = {"sources": dict(sources), "numerics": NUMERICS, "dependencies": made_from}
    theirs = _read(folder / FILE)
    aside = None
    if theirs != mine and any((folder / part).exists() for part in PARTS):
        aside = folder / f"superseded-{1 + len(list(folder.glob('superseded-*')))}"
        aside.mkdir()
        for part in PARTS:
            with suppress(FileNotFoundError):
                (folder / part).rename(aside / part)
    if theirs != mine:
        write_json(folder / FILE, mine)
    return aside


def dependencies(store: Store, needs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Name -> `cell`, `checksum` and `weights` of the records that a cell is made from; `needs`: name -> cell id."""
    records = {name: (cell, store.record(cell)) for name, cell in needs.items()}
    return {
        name: {"cell": cell, "checksum": record.checksum if record else "", "weights": record.weights if record else ""}
        for name, (cell, record) in records.items()
    }


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
