"""Bounds of one cell's process: time, memory, disk. Torch-free."""

import errno
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import psutil

from harness import memory

KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of a process that SIGKILL ended; the second where a shell lay between."""
NEARLY = 0.9
"""Share of the memory bound over which a killed process was most likely killed for it."""
LISTING_SHARE = 0.02
"""Of one core, that looking for new children may cost: it reads the whole process table, thousands of entries on a cluster's node."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXTS = (*(os.strerror(number) for number in FULL), "unexpected pos")
"""In messages of libraries that drop the number; the last is all that `torch.save` says when its file ends early."""

PROCESSES = threading.Lock()
"""Hold it to start a process beside a `supervise` in another thread: multiprocessing's `start` polls every child, and of two
that poll one child of a forkserver at the same moment the second gets the exit code 255."""


@dataclass(frozen=True)
class Limits:
    """What a cell's process may use; None = no bound."""

    seconds: float | None
    memory: int | None
    """Bytes that the process and its children may hold (`memory.resident`)."""


@dataclass(frozen=True)
class Ending:
    """How a supervised process ended."""

    code: int
    """Exit code; negative = signal. A process may end well (0) in the moment it is asked or killed: the code goes first."""
    killed_for: str
    """`memory`: over its bound; `time`: asked to stop at its bound, and killed where it did not; empty = it ended by itself."""
    peak_rss: int
    """Most bytes that it and its children were seen to hold (`memory.resident`: without pages of mapped files)."""
    last_rss: int
    """The same, when it was last seen alive."""
    bound: int
    """Bytes that it could have had: its own limit, or the machine's or control group's memory where that is less."""
    kernel_kills: int
    """Processes of this control group that the kernel killed for memory meanwhile."""
    seconds: float
    """Wall time."""

    def evidence(self) -> bool:
        """True where the process was killed and memory was why: our watch, the kernel's counter, or nearly at its bound."""
        if self.code not in KILLED or self.killed_for == "time":
            return False
        return self.killed_for == "memory" or self.kernel_kills > 0 or self.last_rss > NEARLY * self.bound


def supervise(process: BaseProcess, limits: Limits, *, grace: float = 30.0, interval: float = 0.1) -> Ending:
    """Wait until a started process of the forkserver ends, and hold it to its limits.

    Over `limits.memory`, it and its children get SIGKILL. At `limits.seconds` it gets SIGTERM, which asks it to save and stop,
    and SIGKILL `grace` seconds later. Memory is looked at every `interval` seconds; the end itself is noticed at once.
    """
    watch = _Watch(process.pid, limits, grace)
    watch.look()
    while not wait([process.sentinel], interval):
        watch.look()
    with PROCESSES:
        process.join()
    return watch.ending(process.exitcode)


def cap_data(limit: int, *, cuda: bool) -> int | None:
    """Bound the memory of this process (call it after the imports), so that an allocation too many raises a typed error.

    `limit` (bytes) means what `Limits.memory` means, so the room is what this process does not hold yet; since untouched
    allocations count too, the error comes before the watch kills. Returns the new RLIMIT_DATA; None where it is not applied:
    outside Linux, and with `cuda`. RLIMIT_DATA counts private writable mappings by their addresses, not their pages; CUDA's
    driver reserves many that it never touches, and where one is refused it reports a broken device rather than missing
    memory. There device memory has its own typed error, and host memory the watch.
    """
    if cuda or not sys.platform.startswith("linux"):
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    room = max(limit - memory.resident(), 0)
    wanted = [memory.sizes()["VmData"] + room, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), hard))
    return min(wanted)


def disk_full(error: BaseException) -> bool:
    """True where a full disk or quota is anywhere in the chain of causes and contexts, or in a group of exceptions."""
    seen, open_ends = set(), [error]
    while open_ends:
        link = open_ends.pop()
        if link is None or id(link) in seen:
            continue
        if (isinstance(link, OSError) and link.errno in FULL) or any(text in str(link) for text in FULL_TEXTS):
            return True
        seen.add(id(link))
        open_ends += [link.__cause__, link.__context__, *(link.exceptions if isinstance(link, BaseExceptionGroup) else ())]
    return False


class _Family:
    """A process and its children; a process that has ended counts nothing."""

    def __init__(self, pid: int) -> None:
        self._root: psutil.Process | None = None
        self._children: list[psutil.Process] = []
        self._list_at = 0.0
        with suppress(psutil.Error):
            self._root = psutil.Process(pid)

    def resident(self, limit: int | None) -> int:
        """Bytes held; pages shared between parent and child are told apart only where it matters, since that is slow."""
        if self._root is None:
            return 0
        self._list()
        pids = [self._root.pid, *(child.pid for child in self._children)]
        total = sum(map(memory.resident, pids))
        if limit is None or total <= limit or len(pids) == 1:
            return total
        shares = [memory.proportional(pid) for pid in pids]
        return total if None in shares else sum(shares)

    def ask(self) -> None:
        """SIGTERM to the process; its children are its own business."""
        with suppress(psutil.Error):
            if self._root is not None:
                self._root.terminate()

    def kill(self) -> None:
        """SIGKILL to all, the parent first so that it starts no more."""
        self._list_at = 0.0
        self._list()
        for process in filter(None, (self._root, *self._children)):
            with suppress(psutil.Error):
                process.kill()

    def _list(self) -> None:
        started = time.monotonic()
        if self._root is None or started < self._list_at:
            return
        with suppress(psutil.Error):
            self._children = self._root.children(recursive=True)
        ended = time.monotonic()
        self._list_at = ended + (ended - started) / LISTING_SHARE


class _Watch:
    """Samples of one process, and what was done about them."""

    def __init__(self, pid: int, limits: Limits, grace: float) -> None:
        self._family, self._limits, self._grace = _Family(pid), limits, grace
        self._started, self._kills = time.monotonic(), memory.kills()
        self._last = self._peak = 0
        self._killed_for = ""

    def look(self) -> None:
        """Sample the memory and enforce the limits."""
        # A process that is being torn down holds nothing: what counts as evidence is what it held before.
        self._last = self._family.resident(self._limits.memory) or self._last
        self._peak = max(self._peak, self._last)
        if self._limits.memory is not None and self._last > self._limits.memory:
            self._killed_for = "memory"
            self._family.kill()
        elif self._limits.seconds is not None:
            self._time(time.monotonic() - self._started - self._limits.seconds)

    def _time(self, over: float) -> None:
        if over >= self._grace:
            self._killed_for = "time"
            self._family.kill()
        elif over >= 0 and not self._killed_for:
            self._killed_for = "time"
            self._family.ask()

    def ending(self, code: int) -> Ending:
        """The account of a process that ended with `code`."""
        machine = memory.ceiling()
        bound = machine if self._limits.memory is None else min(self._limits.memory, machine)
        seconds, kills = time.monotonic() - self._started, memory.kills() - self._kills
        return Ending(code, self._killed_for, self._peak, self._last, bound, kills, seconds)
