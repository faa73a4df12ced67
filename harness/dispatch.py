"""Runs one cell in fresh processes of a warm server and says how it ended. Torch-free: the dispatcher never imports torch."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness import lease, limits, origin, outcome, plan, ranks, remake, slots, sourcetexts, worker
from harness.config import RunConfig
from harness.flag import Flag
from harness.lease import Lease
from harness.limits import Limits
from harness.outcome import Outcome
from harness.plan import Planned
from harness.policy import policy_of
from harness.worker import Terms

log = logging.getLogger(__name__)
CLASSES = {
    worker.DONE: "done", worker.REFUSED: "error", worker.ERROR: "error", worker.DIVERGED: "diverged",
    worker.OUT_OF_MEMORY: "oom", worker.DISK_FULL: "disk_full", worker.INTERRUPTED: "interrupted", worker.LOST: "interrupted",
}  # fmt: skip
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Of the server and so of every cell; it must be set before the server starts. Spinning OpenMP threads slow a cell
several times on a machine that does anything else, sleeping ones cost microseconds."""

UNLIMITED = Limits(None, None)

_live: set[BaseProcess] = set()
_stopping = Flag()


def run(planned: Planned) -> Outcome:
    """Run a cell to its record, or leave `outcome.json` with its class and last lines; a finished cell is not run again."""
    try:
        return _run(planned)
    except OSError as error:  # a store that is full or gone for a moment takes this cell down, not the sweep
        status = "disk_full" if limits.disk_full(error) else "error"
        ended = Outcome(planned.cell, planned.label, status, worker.ERROR, (str(error),), ended=time.time())
        with suppress(OSError):
            ended.write(planned.folder)
        return ended


def _run(planned: Planned) -> Outcome:
    policy, started, retries = policy_of(planned.resolved.run), time.perf_counter(), 0
    state, reason, way = plan.verdict(planned.resolved, planned.identity)
    old = planned.store.has_record(planned.cell)
    while state == plan.RUN and not _stopping.is_set():
        held = _take(planned, way, reason, old)
        if held is None:
            break
        if policy.force:
            remake.release(planned.store, planned.cell)  # what was to be reproduced is given up
        ended = replace(_attempt(planned, held, way), seconds=time.perf_counter() - started)
        _leave(ended, held)
        if not policy.again(ended, retries):
            return ended
        retries += 1
    return _not_run(planned, state, reason)


def check_devices(cells: Iterable[Planned]) -> None:
    """Refuse cells that ask for more accelerators than this machine has, before the first starts."""
    for cell in cells:
        run = cell.resolved.run
        if run.gpus and run.device != "cpu":
            slots.check(run.gpus, slots.visible())


def classify(code: int, killed_for_memory: bool) -> str:
    """The class of an exit code; a SIGKILL (or 137) is `oom` only on evidence, else somebody else's doing: `interrupted`."""
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return "oom" if killed_for_memory else "interrupted"
    if code in (-signal.SIGTERM, -signal.SIGINT):
        return "interrupted"
    return CLASSES.get(code, "error")


def in_process(call: str, arguments: tuple[Any, ...], terms: Terms, allowed: Limits = UNLIMITED, count: int = 1) -> limits.Ending:
    """Run `package.module:function(*arguments)` in `count` fresh processes, each under the limits; how they ended."""
    with ranks.meeting(count) as members:
        processes = [server().Process(target=worker.entry, args=(call, arguments, terms, rank)) for rank in members]
        with limits.PROCESSES:
            for process in processes:
                process.start()
            _live.update(processes)
        try:
            ending, which = ranks.supervise(processes, allowed)
        finally:
            _live.difference_update(processes)
    ranks.gather_logs(terms.folder / "log.txt", count, last=which)
    return ending


def stop_all() -> None:
    """Ask every running cell to save and stop, and start none."""
    _stopping.set()
    for process in list(_live):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def stopped() -> bool:
    """Has `stop_all` been called?"""
    return _stopping.is_set()


def start_again() -> None:
    """Take back `stop_all` for the next sweep of this process."""
    _stopping.clear()


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
    context.set_forkserver_preload(["harness.deaf", "harness.warm"])
    return context


@cache
def accelerators() -> slots.Slots:
    """The accelerators of this machine that cells share."""
    return slots.Slots(slots.visible())


def _take(planned: Planned, way: str, reason: str, old: bool) -> Lease | None:
    """The lease of a cell; an old record's folder is moved aside while it is held, for else another sweep's new one could be moved.

    `old`: there was a record when the cell was judged; one that came since is another sweep's, and needs no attempt.
    """
    store, sweep = planned.store, planned.resolved.run.sweep
    held = lease.take(planned.folder, sweep)
    if held is None or way == plan.MEASURE or not store.has_record(planned.cell):
        return held
    if not old:
        held.drop(planned.folder)
        return None
    if way == plan.REMAKE:
        remake.mark(planned.folder)  # to be reproduced, since only its weights are gone
    moved = store.set_aside(planned.cell)
    held.drop(moved)
    log.info("%s: %s; its folder is kept under %s", planned.cell, reason, moved)
    return lease.take(planned.folder, sweep)


def _attempt(planned: Planned, held: Lease, way: str) -> Outcome:
    """One attempt at a cell: its processes, and what they left."""
    folder = planned.folder
    sources = sourcetexts.of_method(planned.identity.canonical["method"])  # as they are now: a sweep may have been planned days ago
    sourcetexts.keep(sources, planned.store.root)
    (folder / outcome.FILE).unlink(missing_ok=True)
    if way != plan.MEASURE:
        origin.claim(folder, sources, origin.dependencies(planned.store, planned.identity.needs))
    saved = _saved(folder)
    with _devices(planned) as devices:
        ending = _processes(planned, held, devices, way)
    in_time = ending.code == worker.DONE or ending.killed_for != "time"
    status = classify(ending.code, ending.evidence()) if in_time else "timeout"
    if way != plan.MEASURE and planned.store.has_record(planned.cell):
        status = "done"  # whatever hit it after its last act
    lines = () if status == "done" else (*outcome.last_lines(folder / "log.txt"), *_why(ending, planned.resolved.run))
    return Outcome(planned.cell, planned.label, status, ending.code, lines, 0.0, _saved(folder) > saved, sources, time.time())


def _why(ending: limits.Ending, run: RunConfig) -> tuple[str, ...]:
    """What a process that a signal ended could not say itself."""
    if ending.killed_for == "time":
        return (f"over its time limit, run.time_limit_minutes={run.time_limit_minutes:g}",)
    if ending.killed_for == "memory":
        return (f"held {ending.last_rss / 1e9:.2f} GB, over its limit, run.memory_limit_gb={run.memory_limit_gb:g}",)
    if ending.evidence():
        return (f"killed for memory: it held {ending.last_rss / 1e9:.2f} GB of {ending.bound / 1e9:.2f} GB",)
    return (f"ended by {signal.Signals(-ending.code).name}",) if ending.code < 0 else ()


def _processes(planned: Planned, held: Lease, devices: list[str] | None, way: str) -> limits.Ending:
    """The cell's run up to its unsealed record, then the seal in a second process; what is already unsealed is only sealed.

    A finished cell that lacks a protocol is only measured.
    """
    run, folder = planned.resolved.run, planned.folder
    memory = None if run.memory_limit_gb is None else int(run.memory_limit_gb * 1e9)
    count = planned.resolved.processes
    terms = Terms(folder, held.number, max(1, (run.threads or cores()) // count), devices, memory)
    seconds = None if run.time_limit_minutes is None else 60 * run.time_limit_minutes
    if way == plan.MEASURE:
        return in_process("harness.worker:measure", (planned.container,), terms, Limits(seconds, memory))
    if not (folder / worker.UNSEALED).exists():
        ending = in_process("harness.worker:run", (planned.container,), terms, Limits(seconds, memory), count)
        if ending.code != worker.DONE:
            return ending
        seconds = None if seconds is None else max(1.0, seconds - ending.seconds)
    ending = in_process("harness.worker:seal", (folder, run.device, run.keep_model), terms, Limits(seconds, memory))
    if ending.code in (worker.ERROR, worker.REFUSED):
        (folder / worker.UNSEALED).unlink(missing_ok=True)  # an export that does not verify is made anew
    return ending


def _devices(planned: Planned) -> AbstractContextManager[list[str] | None]:
    """The accelerators that a cell may see; None = leave that to the environment."""
    run = planned.resolved.run
    if run.device == "cpu" or ":" in run.device or (run.gpus is None and not slots.visible()):
        return nullcontext(None)
    several = planned.resolved.compute.kind != "single"
    return accelerators().take(planned.resolved.processes if several else 1 if run.gpus is None else run.gpus)


def _leave(ended: Outcome, held: Lease) -> None:
    """Note an attempt's end; a disk that is full or gone takes nothing else down."""
    try:
        if ended.status != "done":
            ended.write(held.folder)
        held.end(asdict(ended))
    except OSError as error:
        log.warning("the end of cell %s (%s) could not be noted: %s", ended.cell, ended.status, error)


def _not_run(planned: Planned, state: str, reason: str) -> Outcome:
    """What is to be said of a cell that needs no attempt, or may have none now."""
    if state == plan.STALE:
        return Outcome(planned.cell, planned.label, "stale", worker.ERROR, (reason,))
    if planned.store.has_record(planned.cell):
        return Outcome(planned.cell, planned.label, "done", worker.DONE)
    if lease.holder(planned.folder) is not None:
        return Outcome(planned.cell, planned.label, "leased", worker.LOST, ("another sweep runs it",))
    last = outcome.read(planned.folder)
    return last or Outcome(planned.cell, planned.label, "interrupted", worker.INTERRUPTED, ("not started: the sweep was stopped",))


def _saved(folder: Path) -> tuple[int, int]:
    """How far the checkpoints of a cell reach: finished phases, newest step."""
    steps = [0]
    for path in folder.glob("checkpoints/*/checkpoint-*"):
        with suppress(ValueError):
            steps.append(int(path.name.rpartition("-")[2]))
    return len(list(folder.glob("checkpoints/*/final"))), max(steps)
