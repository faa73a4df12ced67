"""What a cell left in the store, as plain JSON: its record or its failure, thinned learning curves, the end of its log."""

import json
import os
from pathlib import Path
from typing import Any

from analysis.curves import POINTS, curves
from harness.store import Store

LOG_LINES = 40
LOG_BYTES = 16_384
"""Read from the end of a log."""
LINE = 400
"""Characters shown of a log line."""
UNSHOWN = ("schema", "files", "checksum", "status", "cell")


def trace(store: Path, cell: str, points: int = POINTS) -> dict[str, Any]:
    """A cell's `record` (or the `config` and `outcome` of one that failed), `curves` and `log`; what is not in the store is absent.

    Compact copies (`parebench-report export-records`) have neither curves nor log.
    """
    folder = Store(store).folder(cell)
    found: dict[str, Any] = {}
    if (folder / "record.json").exists():
        record = json.loads((folder / "record.json").read_text())
        found["record"] = {key: value for key, value in record.items() if key not in UNSHOWN}
    else:
        config = json.loads((folder / "config.json").read_text())
        found["config"] = {key: value for key, value in config.items() if key != "run"}
        found["outcome"] = json.loads((folder / "outcome.json").read_text())
    found["curves"] = curves(_history(folder / "history.jsonl"), points)
    found["log"] = log_tail(folder / "log.txt")
    return {key: value for key, value in found.items() if value}


def _history(file: Path) -> list[dict[str, Any]]:
    """The rows of a learning curve; a torn last line is left out."""
    if not file.is_file():
        return []
    whole, _, _ = file.read_text(errors="replace").rpartition("\n")
    return json.loads(f"[{','.join(filter(None, whole.split(chr(10))))}]")


def log_tail(file: Path) -> list[str]:
    """The last lines of a log, long ones cut; empty where there is none."""
    if not file.is_file():
        return []
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - LOG_BYTES))
        text = opened.read().decode(errors="replace")
    lines = [line.rstrip() for line in text.split("\n")[-LOG_LINES - 1 :]]
    return [line if len(line) <= LINE else f"{line[:LINE]}…" for line in lines if line][-LOG_LINES:]
