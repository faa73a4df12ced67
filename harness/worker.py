"""Inside the process of one cell: its log, its threads, the signals that ask it to stop, its exit code."""

import fcntl
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
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from methods.spec import UserError

DONE, REFUSED, ERROR, DIVERGED, OUT_OF_MEMORY, INTERRUPTED = 0, 2, 3, 4, 5, 75
"""Exit codes of a cell's process; `OUT_OF_MEMORY` = an allocation failed with a typed error."""
LOCK = "lock"
"""File of a cell's folder that its running process locks, so that two dispatchers never write one cell."""
ORPHAN_GRACE = 60.0
"""Seconds that a cell without its dispatcher has to save and stop by itself."""

_stop = threading.Event()


def stop_requested() -> bool:
    """True after SIGTERM or SIGUSR2, or once the dispatcher is dead: save at the end of the step and stop."""
    return _stop.is_set()


def entry(call: str, arguments: tuple[Any, ...], log: Path, threads: int) -> None:
    """Run `package.module:function(*arguments)` as this process; ends it with one of the exit codes above.

    Standard output and error go to the end of `log`; torch gets `threads` threads (environment variables set after the
    server's start would not reach this process).
    """
    _redirect(log)
    _listen()
    code = _guarded(call, arguments, log.parent, threads)
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


def _guarded(call: str, arguments: tuple[Any, ...], folder: Path, threads: int) -> int:
    try:
        importlib.import_module("harness.warm")  # the server's preload swallows an ImportError; here it is seen
        import torch

        torch.set_num_threads(threads)
        module, function = call.split(":")
        with _alone(folder):
            if not (folder / "record.json").exists():  # else another dispatcher was first while this one waited
                getattr(importlib.import_module(module), function)(*arguments)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    except BaseException as error:
        traceback.print_exc()
        return _exit_code(error)
    return DONE


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the cell's lock, which the kernel frees however this process ends; an orphan is waited for, another owner refused."""
    with (folder / LOCK).open("w") as file:
        until = time.monotonic() + ORPHAN_GRACE + 5
        while not _locked(file.fileno()):
            if time.monotonic() > until or stop_requested():
                raise UserError(f"cell {folder.name} is running in another process; wait for it, or give another run.store")
            time.sleep(0.5)
        yield


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _exit_code(error: BaseException) -> int:
    import torch

    from harness.guard import Diverged, Interrupted

    if isinstance(error, Diverged):
        return DIVERGED
    if isinstance(error, Interrupted):
        return INTERRUPTED
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


def _listen() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: _stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the dispatcher decides
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(dispatcher: int) -> None:
    wait([dispatcher])
    _stop.set()
    threading.Event().wait(ORPHAN_GRACE)
    os._exit(INTERRUPTED)
