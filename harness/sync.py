"""Mirrors a sweep of the store to Weights & Biases: live while it runs, or afterwards. Torch-free.

`python -m harness.sync --store S --sweep NAME` sends what is missing; `--follow` tails the store until standard input ends.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness import runview
from harness.config import TrackerConfig
from harness.runview import Attempt, Ending, Title
from harness.sentledger import Ledger
from harness.store import Store
from methods.spec import UserError

if TYPE_CHECKING:
    from harness.tracking import Run, Tracker

POLL = 1.0
"""Seconds between two looks at the store."""
REST = 60.0
"""Seconds before W&B is tried again after it failed."""
NICE = 10
SOME_UNSENT = 1
LOST = Ending(runview.INTERRUPTED, 1)
"""Of an attempt that left no word."""


@dataclass
class Report:
    """What a synchronisation did."""

    sent: int = 0
    """Runs that were completed."""
    unsent: int = 0
    """Ended cells that W&B does not have."""
    running: int = 0
    """Cells that have not ended."""
    problem: str = ""
    """Why something was not sent."""

    def sentence(self) -> str:
        """For people."""
        counts = {"sent": self.sent, "not sent": self.unsent, "still running": self.running}
        shown = ", ".join(f"{n} {what}" for what, n in counts.items() if n or what == "sent")
        return f"runs: {shown}" + (f" ({self.problem})" if self.problem else "")


def sync(
    store: Path | str,
    sweep: str,
    tracker: TrackerConfig,
    follow: bool = False,
    stop: threading.Event | None = None,
    warn: Callable[[str], object] = str,
) -> Report:
    """Send to W&B what it does not have of a sweep's cells; the same whether they run now or ran long ago.

    With `follow` until `stop` is set, running cells included. Never raises for W&B's sake: the report, and `warn` with the first
    problem, say why something was not sent; the next call sends it. Raises `UserError` where the tracker is `none`.
    """
    if tracker.kind == "none":
        raise UserError("tracker=none sends nothing; type tracker=online or tracker=offline")
    from harness.tracking import Tracker

    mirror = Mirror(Store(store), sweep, Tracker(tracker), follow, warn)
    stop = stop or threading.Event()
    while follow and not stop.is_set():
        started = time.monotonic()
        mirror.look()
        stop.wait(max(POLL, time.monotonic() - started))
    mirror.look()
    mirror.leave()
    return mirror.report()


@dataclass
class Open:
    """A run that is being written."""

    attempt: Attempt
    run: "Run"
    lines: int


@dataclass
class Mirror:
    """One sweep's way into one destination."""

    store: Store
    sweep: str
    tracker: "Tracker"
    follow: bool
    warn: Callable[[str], object]
    open: dict[str, Open] = field(default_factory=dict)
    """By cell."""
    settled: dict[str, int] = field(default_factory=dict)
    """Cells that W&B has, with the time stamp of their attempts: looked at again only after that has changed."""
    sent: int = 0
    problem: str = ""
    resting: float = 0.0
    """Not tried again before this moment."""

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store.root, self.tracker.destination)

    def look(self) -> None:
        """Bring W&B to where the store is; after a failure not before some time has passed."""
        from harness.tracking import Unavailable

        if time.monotonic() < self.resting:
            return
        cell = ""
        try:
            for cell in sorted(self.store.members(self.sweep)):
                self._readable(cell)
        except (Unavailable, OSError) as error:
            self._drop(cell)
            self.resting = time.monotonic() + REST
            self._problem(str(error))

    def leave(self) -> None:
        """Close what has not ended; the next synchronisation goes on with it."""
        from harness.tracking import Unavailable

        for cell, one in list(self.open.items()):
            try:
                if time.monotonic() >= self.resting:
                    self._finish(one, LOST, complete=False)
            except (Unavailable, OSError) as error:
                self._problem(str(error))
            self._drop(cell)

    def report(self) -> Report:
        """How far it went."""
        states = [self._state(cell) for cell in self.store.members(self.sweep)]
        return Report(self.sent, states.count("unsent"), states.count("running"), self.problem)

    def _state(self, cell: str) -> str:
        try:
            attempt = runview.newest(self.store, cell)
            if attempt is None or self.ledger.status(attempt.run) is not None:
                return ""
            if attempt.ending() is None:
                return "running"
            return "unsent" if attempt.title(self.sweep, "") else ""  # it ended before its configuration was written: nothing to show
        except (OSError, ValueError):
            return "unsent"

    def _readable(self, cell: str) -> None:
        try:
            self._cell(cell)
        except FileNotFoundError:  # a forced cell was just moved aside
            self._drop(cell)
        except ValueError as error:
            self._drop(cell)
            self._problem(f"{self.store.folder(cell)} is damaged: {error}")

    def _cell(self, cell: str) -> None:
        stamp = runview.stamp(self.store, cell)
        if self.settled.get(cell) == stamp:
            return
        attempt = runview.newest(self.store, cell)
        if attempt is not None and self._attempt(cell, attempt):
            self.settled[cell] = stamp

    def _attempt(self, cell: str, attempt: Attempt) -> bool:
        """Bring one cell's run to where the store is; whether W&B has it whole."""
        if self.ledger.status(attempt.run) is not None:
            return True
        one = self.open.get(cell)
        if one and one.attempt.run != attempt.run:  # another dispatcher took the cell over
            self._finish(one, one.attempt.ending() or LOST, complete=True)
            self._drop(cell)
            one = None
        ending = attempt.ending()
        if one is None and (ending or (self.follow and attempt.alive())):
            one = self._begin(attempt, ending)
        if one is None:
            return False
        one.attempt = attempt
        self._push(one)
        if ending is None:
            return False
        self._finish(one, ending, complete=True)
        self.sent += 1
        self._drop(cell)
        return True

    def _begin(self, attempt: Attempt, ending: Ending | None) -> Open | None:
        title = attempt.title(self.sweep, ending.status if ending else runview.RUNNING)
        if title is None or not self.ledger.claim(attempt.run):
            return None
        self.open[attempt.cell] = one = Open(attempt, self._run(title), 0)
        one.lines = self._already(one)
        self._note(one, None)
        return one

    def _run(self, title: Title) -> "Run":
        abandoned = self.ledger.files(title.run)
        if abandoned and not self.tracker.online:  # an offline run cannot be gone on with: it is written again from the start
            self.tracker.discard(abandoned)
        try:
            return self.tracker.begin(title)
        except BaseException:
            self.ledger.release(title.run)
            raise

    def _already(self, one: Open) -> int:
        """Lines that need not be sent: what the server says that it has, else what was handed over to it."""
        if not self.tracker.online:
            return 0
        return self.ledger.lines(one.attempt.run) if one.run.known is None else one.run.known

    def _push(self, one: Open) -> None:
        rows = one.attempt.curve()
        for number in range(one.lines, len(rows)):
            one.run.log(number, rows[number])
        if len(rows) > one.lines:
            one.lines = len(rows)
            self._note(one, None)

    def _finish(self, one: Open, ending: Ending, complete: bool) -> None:
        title = one.attempt.title(self.sweep, ending.status)
        if title is not None:
            record = one.attempt.record
            rows = runview.table(record) if record else []
            one.run.attach(self.store.root.absolute(), runview.files_of(record) if record else ())
            one.run.finish(title, runview.summary(one.attempt, ending), rows, ending.code)
        if complete:
            self._note(one, ending.status)

    def _note(self, one: Open, status: str | None) -> None:
        self.ledger.note(one.attempt.run, files=one.run.files, lines=one.lines, status=status)

    def _drop(self, cell: str) -> None:
        if cell in self.open:
            self.ledger.release(self.open.pop(cell).attempt.run)

    def _problem(self, text: str) -> None:
        if not self.problem:
            self.warn(text)
        self.problem = self.problem or text


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m harness.sync`: 0 where W&B has everything that has ended, else 1 with the reason on standard output."""
    options = _parser().parse_args(argv)
    tracker = TrackerConfig(options.kind, options.project, options.entity, options.folder, options.timeout)
    if not options.follow:
        report = sync(options.store, options.sweep, tracker)
        _say(report.sentence())
        return SOME_UNSENT if report.unsent else 0
    os.nice(NICE)
    stop = threading.Event()
    threading.Thread(target=_until_input_ends, args=(stop,), daemon=True).start()
    try:
        report = sync(options.store, options.sweep, tracker, True, stop, _say)
    except Exception as error:
        _say(f"{type(error).__name__}: {error}")
        return SOME_UNSENT
    return SOME_UNSENT if report.unsent else 0


def _until_input_ends(stop: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    stop.set()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.sync", description="Mirror a sweep of the store to Weights & Biases.")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--sweep", required=True)
    parser.add_argument("--follow", action="store_true", help="tail the store until standard input ends")
    parser.add_argument("--kind", choices=("offline", "online"), required=True)
    parser.add_argument("--project", required=True)
    parser.add_argument("--entity")
    parser.add_argument("--folder", required=True, help="of W&B's own files")
    parser.add_argument("--timeout", type=float, required=True, help="seconds that W&B may take to answer")
    return parser


if __name__ == "__main__":
    code = main()
    os._exit(code)  # wandb's own exit hook would wait for a server that has gone
