"""One cell as a job of a cluster: on its node this process is the dispatcher of that cell. Torch-free.

A job travels by pickle, so it holds plain values only, and `run` is found by its name on the node: the node needs the same
installation and the same folders (a shared file system), nothing else.
"""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from harness import dispatch, plan, schedule, worker
from harness.outcome import LAST_LINES, Outcome
from harness.stopping import stops
from harness.store import Store
from methods.spec import UserError

LOOK = 0.5
"""Seconds between two moments at which the main thread hears of a cancelled task."""


@dataclass(frozen=True)
class Job:
    """What a node is told of a cell."""

    cell: str
    label: str
    """What a person calls it."""
    directory: str
    """The working directory that relative paths of the configuration start from."""
    container: dict[str, Any]
    """The resolved configuration."""
    requeues: int = 0
    """How often SLURM may start it again after its time limit."""

    @property
    def store(self) -> Store:
        """The store, wherever this process works."""
        return Store(Path(self.directory) / self.container["run"]["store"])

    @property
    def folder(self) -> Path:
        """The cell's folder in the store."""
        return self.store.folder(self.cell)


def run(job: Job) -> str:
    """Dispatch the cell; its status. An ending before the cell's own process is noted in the store like any other.

    SIGTERM, SIGUSR2 and SIGINT make the cell save and stop. After SIGUSR2 (SLURM's time limit is near) the job asks SLURM to
    start it again; after the others whoever sent them decides.
    """
    os.chdir(job.directory)
    status, came = "interrupted", []
    try:
        with stops() as came:
            status = _beside(_dispatched, job).status
    except KeyboardInterrupt:
        if signal.SIGUSR2 in came and status == "interrupted":
            _requeue(job.requeues)
    return status


def note(job: Job, status: str, code: int, lines: Sequence[str]) -> Outcome:
    """Leave the outcome of a cell that could not write its own."""
    outcome = Outcome(job.cell, job.label, status, code, tuple(lines), ended=time.time())
    outcome.write(job.folder)
    return outcome


def _beside(function: Callable[[Job], Outcome], job: Job) -> Outcome:
    """Call in a second thread. Ray's cancelling only marks an interrupt, which a main thread that waits for a process would not see."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(function, job)
        while not wait([future], timeout=LOOK).done:
            continue
        return future.result()


def _dispatched(job: Job) -> Outcome:
    try:
        cell = _here(job)
        ended = list(schedule.run_all([cell], 1, dispatch.run, dispatch.stopped))
    except UserError as error:
        return note(job, "error", worker.REFUSED, [str(error)])
    except Exception:
        note(job, "error", worker.ERROR, traceback.format_exc().splitlines()[-LAST_LINES:])
        raise
    return ended[0] if ended else note(job, "interrupted", worker.INTERRUPTED, ["stopped before it started"])


def _here(job: Job) -> plan.Planned:
    """The cell as this node sees it; `UserError` where it could not run it, or would run another one."""
    cell = plan.check(OmegaConf.create(job.container))
    if cell.state == plan.SKIPPED:
        raise UserError(cell.reason)
    if cell.cell != job.cell:
        raise UserError(f"this is cell {cell.cell} on its node and {job.cell} where it was planned; give all nodes the same data and code")
    dispatch.check_devices([cell])
    return cell


def _requeue(limit: int) -> None:
    number = os.environ.get("SLURM_JOB_ID")
    if number and int(os.environ.get("SLURM_RESTART_COUNT", "0")) < limit:
        subprocess.run(["scontrol", "requeue", number], check=True, timeout=60)
