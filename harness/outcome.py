"""How an attempt at a cell ended: what the dispatcher leaves for the summary, the rerun policy and the tables. Torch-free."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.store import write_json

FILE = "outcome.json"
LAST_LINES = 5


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt."""

    cell: str
    label: str
    """What a person calls it."""
    status: str
    """`done`, a failure class of `harness.config.FAILURES`, `skipped` (a cell that it needs failed) or `leased` (runs elsewhere)."""
    code: int
    """Exit code of the last process; negative = signal."""
    lines: tuple[str, ...] = ()
    """Last lines of its log, where it failed."""
    seconds: float = 0.0
    progressed: bool = False
    """It left a newer checkpoint than it found."""
    sources: dict[str, str] = field(default_factory=dict)
    """Hashes of the method's files that ran: a failure of other sources says nothing about today's."""
    ended: float = 0.0
    """Unix time."""

    @property
    def last_line(self) -> str:
        """The reason in one line; empty where there is none."""
        return self.lines[-1].strip() if self.lines else ""

    def write(self, folder: Path) -> None:
        """Leave it in the cell's folder."""
        write_json(folder / FILE, asdict(self))


def read(folder: Path) -> Outcome | None:
    """What the last failed attempt at a cell left; None where it left nothing, or less than a whole file."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text())
        return Outcome(**{**values, "lines": tuple(values["lines"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def last_lines(log: Path) -> tuple[str, ...]:
    """The last non-empty lines of a log; empty where there is none."""
    if not log.is_file():
        return ()
    return tuple([line for line in log.read_text(errors="replace").splitlines() if line.strip()][-LAST_LINES:])
