"""Remembers in the store what Weights & Biases already has, so that a rerun sends only what is missing. Torch-free."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO

from harness.store import write_json

SENT = ".wandb-sent"


class Ledger:
    """`<store>/.wandb-sent/<destination>/<run>.json`: a run's status once it was sent whole, before that where it is being written."""

    def __init__(self, store: Path, destination: str) -> None:
        self.destination = destination
        self.folder = store / SENT / hashlib.sha256(destination.encode()).hexdigest()[:8]
        self._claims: dict[str, IO[str]] = {}

    def status(self, run: str) -> str | None:
        """How a run ended that was sent whole; None while anything of it is missing."""
        return self._read(run).get("status")

    def files(self, run: str) -> Path | None:
        """Where W&B's own files of a run lie that was begun."""
        files = self._read(run).get("files")
        return Path(files) if files else None

    def lines(self, run: str) -> int:
        """Lines of the learning curve that were handed over."""
        return self._read(run).get("lines", 0)

    def note(self, run: str, *, files: Path, lines: int, status: str | None) -> None:
        """Write what is known of a run."""
        write_json(
            self._path(run),
            {"destination": self.destination, "files": str(files), "lines": lines, "status": status},
            durable=status is not None,
        )

    def claim(self, run: str) -> bool:
        """Whether this process may write a run: no other does, and it is not complete. Freed by `release` or with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._lock(run).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._claims[run] = file
        if not _named(file, self._lock(run)) or self.status(run) is not None:  # another process has just released it
            self.release(run)
            return False
        return True

    def release(self, run: str) -> None:
        """Give a claimed run back."""
        file = self._claims.pop(run)
        if _named(file, self._lock(run)):
            self._lock(run).unlink()
        file.close()

    def _path(self, run: str) -> Path:
        return self.folder / f"{run}.json"

    def _lock(self, run: str) -> Path:
        return self.folder / f"{run}.lock"

    def _read(self, run: str) -> dict:
        try:
            return json.loads(self._path(run).read_text())
        except (OSError, ValueError):
            return {}


def _named(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
