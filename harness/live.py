"""What a person sees while a sweep runs: a live table on a terminal, one line per ended cell everywhere. Torch-free."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness import lease, progress
from harness.human import changed, duration, headline
from harness.progress import Progress
from harness.status import readable
from harness.store import Store

REFRESH = 1.0
"""Refreshes per second, of which each looks at every cell that has not ended."""
DONE = "done"


class Ended(Protocol):
    """What the view needs of a `dispatch.Outcome`."""

    cell: str
    label: str
    status: str
    seconds: float


class Asked(Protocol):
    """What the view needs of a `plan.Planned`."""

    @property
    def cell(self) -> str:
        """The cell id."""

    @property
    def label(self) -> str:
        """What a person calls it."""

    @property
    def overrides(self) -> Sequence[str]:
        """What makes it of the sweep's configuration."""


class View:
    """The cells of a running sweep; threads may share it."""

    def __init__(self, cells: Sequence[Asked], store: Store, console: Console) -> None:
        self.store, self.console = store, console
        self.names = {cell.cell: f"{cell.label} {changed(cell.overrides)}".strip() for cell in cells}
        self.open = dict.fromkeys(self.names)
        self.statuses: Counter[str] = Counter()
        self.started = time.monotonic()
        self.printing = threading.Lock()
        self.counting = threading.Lock()
        """Never held while printing: rich's own lock is held while it asks for the table, and is wanted for every line."""

    @property
    def ended(self) -> int:
        """Cells that have ended, however."""
        return self.statuses.total()

    def line(self, outcome: Ended) -> None:
        """Print how one cell ended."""
        record = readable(self.store, outcome.cell)
        name = self.names.get(outcome.cell, outcome.label)
        ending = f"{outcome.status} in {outcome.seconds:.0f} s{'  ' + headline(record) if record else ''}"
        with self.printing:
            with self.counting:
                self.open.pop(outcome.cell, None)
                self.statuses[outcome.status] += 1
            self.console.print(f"[{self.ended}/{len(self.names)}] {name}: {ending}", markup=False)

    def eta(self, elapsed: float) -> float | None:
        """Seconds until the last cell ends if the others take as long as those that ended, as many at a time; None before the first."""
        return elapsed * (len(self.names) - self.ended) / self.ended if self.ended else None

    def render(self) -> Table:
        """The sums, and a row for every running cell."""
        table = Table(title=Text(self._sums()), title_justify="left", box=None, pad_edge=False)
        for name, justify in (("running", "left"), ("phase", "left"), ("loss", "right"), ("speed", "right"), ("ETA", "right")):
            table.add_column(name, justify=justify, no_wrap=name != "running")
        for name, found in self._running():
            table.add_row(*map(Text, _row(name, found)))
        return table

    def _sums(self) -> str:
        elapsed = time.monotonic() - self.started
        with self.counting:
            failed = "".join(f", {n} {status}" for status, n in self.statuses.items() if status != DONE)
            ended, eta = self.ended, self.eta(elapsed)
        left = "" if eta is None else f", ETA {duration(eta)}"
        return f"{ended}/{len(self.names)} cells{failed}, {duration(elapsed)} so far{left}"

    def _running(self) -> Iterator[tuple[str, Progress | None]]:
        with self.counting:
            cells = list(self.open)
        for cell in cells:
            folder = self.store.folder(cell)
            if (folder / "attempts").is_dir() and lease.holder(folder) is not None:
                yield self.names[cell], progress.read(folder)


@contextmanager
def view(cells: Sequence[Asked], store: Store, console: Console) -> Iterator[View]:
    """The view of these cells while they run; on a terminal with a live table below the lines."""
    shown = View(cells, store, console)
    if not console.is_terminal:
        yield shown
        return
    with Live(get_renderable=shown.render, console=console, refresh_per_second=REFRESH, transient=True):
        yield shown


def _row(name: str, found: Progress | None) -> tuple[str, ...]:
    if found is None:
        return name, "starting", "", "", ""
    loss = "" if found.loss is None else f"{found.loss:.4f}"
    speed = "" if found.speed is None else f"{found.speed:.{0 if found.speed >= 100 else 1}f} {found.unit}/s"
    return name, found.where, loss, speed, duration(found.eta)
