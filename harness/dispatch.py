"""Runs one cell in fresh processes of a warm server and says how it ended. Torch-free: the dispatcher never imports torch."""

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness import sourcetexts, worker
from harness.plan import Planned
from harness.store import Store, write_json

CLASSES = {
    worker.DONE: "done", worker.REFUSED: "error", worker.ERROR: "error", worker.DIVERGED: "diverged",
    worker.OUT_OF_MEMORY: "oom", worker.INTERRUPTED: "interrupted",
}  # fmt: skip
LAST_LINES = 5
REPLACED = ".replaced"
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Of the server and so of every cell; it must be set before the server starts. Spinning OpenMP threads slow a cell
several times on a machine that does anything else, sleeping ones cost microseconds."""

_live: set[BaseProcess] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: str
    label: str
    """What a person calls it."""
    status: str
    """`done`, `diverged`, `error`, `interrupted` or `oom` (only on evidence)."""
    code: int
    """Exit code of the last process; negative = signal."""
    lines: tuple[str, ...] = ()
    """Last lines of its log, where it failed."""
    seconds: float = 0.0


def run(planned: Planned) -> Outcome:
    """Run a cell to its record, or leave `outcome.json` with its class and last lines; a finished cell is not run again."""
    store, folder = Store(planned.resolved.run.store), planned.folder
    if planned.resolved.run.force:
        _move_aside(folder)
    if store.record(planned.cell) is not None:
        return Outcome(planned.cell, planned.label, "done", worker.DONE)
    started = time.perf_counter()
    sourcetexts.keep(planned.identity.sources, store.root)
    (folder / "outcome.json").unlink(missing_ok=True)
    code, evidence = _processes(planned, folder)
    status = classify(code, evidence)
    lines = () if status == "done" else last_lines(folder / "log.txt")
    outcome = Outcome(planned.cell, planned.label, status, code, lines, time.perf_counter() - started)
    if status != "done":
        write_json(folder / "outcome.json", asdict(outcome))
    return outcome


def classify(code: int, killed_for_memory: bool) -> str:
    """The class of an exit code; a SIGKILL (or 137) is `oom` only on evidence, else somebody else's doing: `interrupted`."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "oom" if killed_for_memory else "interrupted"
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return "interrupted"
    return CLASSES.get(code, "error")


def last_lines(log: Path) -> tuple[str, ...]:
    """The last non-empty lines of a log; empty where there is none."""
    if not log.is_file():
        return ()
    return tuple([line for line in log.read_text(errors="replace").splitlines() if line.strip()][-LAST_LINES:])


def in_process(call: str, arguments: tuple[Any, ...], log: Path, threads: int) -> int:
    """Run `package.module:function(*arguments)` in one fresh process; its exit code, negative where a signal ended it."""
    with _lock:
        process = server().Process(target=worker.entry, args=(call, arguments, log, threads))
        process.start()
        _live.add(process)
    process.join()
    _live.discard(process)
    return process.exitcode


def stop_all() -> None:
    """Ask every running cell to save and stop."""
    for process in list(_live):
        process.terminate()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def server() -> multiprocessing.context.BaseContext:
    """The context of the one warm server, started with the first process."""
    os.environ.update({key: os.environ.get(key, value) for key, value in ENVIRONMENT.items()})
    path = [str(sourcetexts.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)  # the server does not inherit sys.path
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.warm"])
    return context


def _processes(planned: Planned, folder: Path) -> tuple[int, bool]:
    run = planned.resolved.run
    threads, log = run.threads or cores(), folder / "log.txt"
    kills = _memory_kills()
    code = in_process("harness.worker:run", (planned.container,), log, threads)
    if code == worker.DONE:
        code = in_process("harness.worker:seal", (folder, run.device, run.keep_model), log, threads)
    return code, _memory_kills() > kills


def _memory_kills() -> int:
    """How often the kernel has killed a process of this control group for memory; 0 where no counter can be read."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rsplit("::", 1)[-1].lstrip("/")
        events = (Path("/sys/fs/cgroup") / group / "memory.events").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))


def _move_aside(folder: Path) -> None:
    """Keep a finished cell's folder under `<store>/.replaced/`; an unfinished one stays and is resumed."""
    if not (folder / "record.json").exists():
        return
    aside = folder.parent / REPLACED
    aside.mkdir(exist_ok=True)
    folder.rename(aside / f"{folder.name}-{len(list(aside.glob(f'{folder.name}-*'))) + 1}")


def read_outcome(folder: Path) -> Outcome | None:
    """What a failed cell left; None where it left nothing."""
    path = folder / "outcome.json"
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    return Outcome(**{**values, "lines": tuple(values["lines"])})
