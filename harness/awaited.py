"""How the cells that were handed to a cluster ended: the store says it, never the cluster. Torch-free."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from harness import outcome, worker
from harness.job import Job, note
from harness.outcome import LAST_LINES, Outcome

log = logging.getLogger(__name__)
GRACE = 15.0
"""Seconds that a job which has left the queue has to show its ending (a shared file system may be late)."""
PATIENCE = 600.0
"""Seconds without an answer of the queue after which nobody waits any longer."""
SIGNS = {"oom": ("oom-kill", "oom_kill"), "timeout": ("DUE TO TIME LIMIT",)}
"""What SLURM writes to the log of a job that it ended, by class; without one a job was interrupted."""
ENDINGS = ("record.json", outcome.FILE)
Mark = tuple[int, int] | None


class Awaited:
    """A job that was handed over."""

    def __init__(self, job: Job, log: Path | None = None) -> None:
        self.job, self.log = job, log
        self.before = self._marks()
        self.gone: float | None = None
        """When it was first missing from the queue."""

    def spoke(self) -> bool:
        """Whether its cell has ended since it was handed over."""
        now = self._marks()
        return any(now) and now != self.before

    def outcome(self, reason: str) -> Outcome:
        """How it ended; where it did not say, what the last lines of the job's own log tell, and `reason`."""
        job = self.job
        if not self.spoke():
            lines = outcome.last_lines(self.log)[1 - LAST_LINES :] if self.log else ()
            return note(job, sign(lines), worker.INTERRUPTED, [*lines, reason])
        failed = outcome.read(job.folder)
        if failed is not None:
            return failed
        record = job.store.record(job.cell)
        return Outcome(job.cell, job.label, "done", worker.DONE, (), record.seconds)

    def _marks(self) -> tuple[Mark, ...]:
        return tuple(_mark(self.job.folder / name) for name in ENDINGS)


def sign(lines: Iterable[str]) -> str:
    """The class of a job that left no word, by the last lines of its log."""
    text = " ".join(lines)
    return next((status for status, words in SIGNS.items() if any(word in text for word in words)), "interrupted")


def follow(jobs: Mapping[str, Awaited], queued: Callable[[], set[str] | None], poll: float) -> Iterator[Outcome]:
    """The outcomes of jobs as they leave the queue, whatever their end; ends early, with a warning, where the queue falls silent.

    `queued` names the jobs that wait or run, None where the queue does not answer. A job that starts again (requeued) stays in
    the queue and so is waited for; a job that was killed leaves it and so is not.
    """
    waiting, heard = dict(jobs), time.monotonic()
    while waiting:
        names, now = queued(), time.monotonic()
        heard = heard if names is None else now
        if now - heard > PATIENCE:
            log.warning("the queue has not answered for %.0f minutes; %d jobs may still run", PATIENCE / 60, len(waiting))
            return
        for name in [] if names is None else [n for n in waiting if n not in names]:
            if _left(waiting[name], now):
                yield waiting.pop(name).outcome(f"job {name} left the queue without a word (killed, or its node failed)")
        if waiting:
            time.sleep(poll)


def _left(one: Awaited, now: float) -> bool:
    one.gone = one.gone or now
    return one.spoke() or now - one.gone > GRACE


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
