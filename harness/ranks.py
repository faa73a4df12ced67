"""Several processes for one cell, started from the dispatcher's one server: each knows its rank, the end of one ends all. Torch-free."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from harness import limits
from harness.limits import Ending, Limits

GRACE = 5.0
"""Seconds that the others have to end by themselves after one ended badly: as a rule their next exchange fails at once."""

_current: "Rank | None" = None


@dataclass(frozen=True)
class Rank:
    """What a process of a cell knows of the others."""

    number: int
    """0 for the one that writes."""
    world: int
    """How many processes there are."""
    meeting: Path
    """A file that does not exist yet, where they find each other: unlike a port, nobody else can take it meanwhile."""

    def enter(self, threads: int) -> None:
        """Called in the process itself, before torch.distributed is used: variables set after the server's start do not reach it."""
        global _current
        _current = self
        own = {"RANK": self.number, "LOCAL_RANK": self.number, "WORLD_SIZE": self.world, "LOCAL_WORLD_SIZE": self.world}
        own["OMP_NUM_THREADS"] = threads  # else accelerate sets torch's threads by itself
        os.environ.update({key: str(value) for key, value in own.items()})
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform.startswith("linux") else "lo0")


def current() -> Rank | None:
    """The rank of this process; None where the cell has one process."""
    return _current


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return _current is None or _current.number == 0


@contextmanager
def meeting(count: int) -> Iterator[list[Rank | None]]:
    """The ranks of `count` processes, for as long as these run; `[None]` for one."""
    if count == 1:
        yield [None]
        return
    folder = Path(tempfile.mkdtemp(prefix="parebench-"))
    try:
        yield [Rank(number, count, folder / "meeting") for number in range(count)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def supervise(processes: list[BaseProcess], allowed: Limits) -> tuple[Ending, int]:
    """Hold each started process to the limits, and end all when one ends badly.

    The ending, and the number, of the one that was the first to end badly; those of the first rank where all end well.
    """
    if len(processes) == 1:
        return limits.supervise(processes[0], allowed), 0
    with ThreadPoolExecutor(len(processes)) as threads:
        numbers = {threads.submit(limits.supervise, process, allowed): number for number, process in enumerate(processes)}
        first = _first_bad(list(numbers))
        if first is None:
            first = next(future for future, number in numbers.items() if number == 0)
        _, running = wait(numbers, GRACE)
        for future in running:
            with suppress(ProcessLookupError):
                os.kill(processes[numbers[future]].pid, signal.SIGKILL)
    return first.result(), numbers[first]


def log_of(log: Path, rank: Rank | None) -> Path:
    """Where a rank writes its log: the first into the cell's own, another beside it until `gather_logs`."""
    return log if rank is None or rank.number == 0 else _beside(log, rank.number)


def gather_logs(log: Path, count: int, last: int) -> None:
    """Append the logs of the other ranks to the cell's, that of rank `last` behind all: there is why the cell ended."""
    for number in sorted(range(1, count), key=lambda number: (number == last, number)):
        own = _beside(log, number)
        text = own.read_text(errors="replace") if own.exists() else ""
        if text:
            with log.open("a") as file:
                file.write(f"rank {number}:\n{text}")
        own.unlink(missing_ok=True)


def _first_bad(endings: list["Future[Ending]"]) -> "Future[Ending] | None":
    """Wait for all, or for the first bad one. Of several seen at once it is a signal's, else that of the highest code: a plain
    error is what follows in the others."""
    running = set(endings)
    while running:
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        bad = [future for future in ended if future.result().code]
        if bad:
            return min(bad, key=lambda future: (future.result().code > 0, -future.result().code))
    return None


def _beside(log: Path, number: int) -> Path:
    return log.with_suffix(f".{number}{log.suffix}")
