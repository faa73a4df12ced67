"""Inside the process of one cell: its log, its threads, the signals that ask it to stop, its exit code."""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NoReturn

from harness import lease, limits, ranks
from harness.flag import Flag
from methods.spec import UserError

DONE, REFUSED, ERROR, DIVERGED, OUT_OF_MEMORY, DISK_FULL, INTERRUPTED, LOST = 0, 2, 3, 4, 5, 6, 75, 76
"""Exit codes of a cell's process; `OUT_OF_MEMORY` = an allocation failed with a typed error, `LOST` = another attempt took over."""
UNSEALED = "unsealed.json"
"""What a cell leaves between its run and its seal."""
ORPHAN_GRACE = 60.0
"""Seconds that a cell without its dispatcher has to save and stop by itself."""
OWNER_CHECK = 5.0
"""Seconds between two looks at whether this attempt still owns its cell."""


@dataclass(frozen=True)
class Terms:
    """What the dispatcher grants a cell's process."""

    folder: Path
    """The cell's folder; its log is written there."""
    attempt: int
    """Number of the lease."""
    threads: int
    devices: list[str] | None = None
    """Accelerators it may see; None = as the environment says."""
    memory: int | None = None
    """Bytes that it may hold."""


_stop = Flag()
_nothing_to_save = Flag()


def stop_requested() -> bool:
    """True after SIGTERM or SIGUSR2, or once the dispatcher is dead: save at the end of the step and stop."""
    return _stop.is_set()


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that holds nothing worth saving: being asked to stop ends it at once with `guard.Interrupted`."""
    _nothing_to_save.set()
    try:
        if _stop.is_set():
            _interrupt()
        yield
    finally:
        _nothing_to_save.clear()


def entry(call: str, arguments: tuple[Any, ...], terms: Terms, rank: ranks.Rank | None = None) -> None:
    """Run `package.module:function(*arguments)` as this process; ends it with one of the exit codes above.

    Standard output and error go to the end of the cell's log; torch gets its threads here (environment variables set after
    the server's start would not reach this process). `rank`: which of the cell's processes this is, where it has several.
    """
    _redirect(ranks.log_of(terms.folder / "log.txt", rank))
    if rank is not None:
        rank.enter(terms.threads)
    if ranks.is_first():
        lease.register(terms.folder, terms.attempt)
    if not lease.owns(terms.folder, terms.attempt):
        sys.exit(LOST)
    _listen(terms)
    code = _guarded(call, arguments, terms)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def run(container: dict[str, Any]) -> None:
    """One cell up to its unsealed record."""
    from harness.cell import run_cell

    run_cell(container)


def seal(folder: Path, device: str, keep_model: bool) -> None:
    """Verify the cell's export in this fresh process and write its record."""
    from harness.cell import seal as seal_cell
    from harness.numerics import resolve_device

    seal_cell(folder, resolve_device(device), keep_model)


def measure(container: dict[str, Any]) -> None:
    """Measure a finished cell on protocols that its record lacks."""
    from harness.measuring import measure as measure_cell

    measure_cell(container)


def _guarded(call: str, arguments: tuple[Any, ...], terms: Terms) -> int:
    try:
        _equip(terms)
        module, function = call.split(":")
        getattr(importlib.import_module(module), function)(*arguments)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except BaseException as error:
        traceback.print_exc()
        return _exit_code(error)
    return DONE


def _equip(terms: Terms) -> None:
    if terms.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(terms.devices)  # read when CUDA starts, which no import does
    importlib.import_module("harness.warm")  # the server's preload swallows an ImportError; here it is seen
    import torch

    torch.set_num_threads(terms.threads)
    if terms.memory is not None:
        limits.cap_data(terms.memory, cuda=torch.cuda.is_available())


def _exit_code(error: BaseException) -> int:
    import torch

    from harness.guard import Diverged, Interrupted

    if isinstance(error, Diverged):
        return DIVERGED
    if isinstance(error, Interrupted):
        return INTERRUPTED
    if limits.disk_full(error):
        return DISK_FULL
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    return ERROR


def _redirect(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _listen(terms: Terms) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _asked_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the dispatcher decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel, terms), daemon=True).start()


def _asked_to_stop(*_: Any) -> None:
    _stop.set()
    if _nothing_to_save.is_set():
        _interrupt()


def _interrupt() -> NoReturn:
    from harness.guard import Interrupted

    _nothing_to_save.clear()  # a second signal must not interrupt what ends the process
    raise Interrupted("stopped while nothing was to be saved; the next run goes on from the finished training")


def _watch(dispatcher: int, terms: Terms) -> None:
    """Ends this process when its dispatcher is dead and it has had time to save, or at once when another attempt owns the cell."""
    orphaned_at: float | None = None
    while orphaned_at is None or time.monotonic() < orphaned_at + ORPHAN_GRACE:
        if orphaned_at is None and wait([dispatcher], OWNER_CHECK):
            os.kill(os.getpid(), signal.SIGTERM)
            orphaned_at = time.monotonic()
        elif orphaned_at is not None:
            time.sleep(1.0)
        if not lease.owns(terms.folder, terms.attempt):
            os._exit(LOST)
    os._exit(INTERRUPTED)
