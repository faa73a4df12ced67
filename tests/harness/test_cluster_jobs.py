"""Cells as jobs of a cluster, without one: what travels, what a node notes, how an ending is learnt, in which order cells go."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

from harness import awaited, dispatch, job, outcome, worker
from harness.awaited import Awaited, follow, sign
from harness.cli import run as parebench
from harness.compose import compose
from harness.job import Job
from harness.outcome import Outcome
from hydra_plugins.parebench._cluster import ClusterLauncher
from hydra_plugins.parebench.slurm import queued

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; `job.run` changes the directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for SLURM's commands, first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    """A shell script under the name of a command."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def a_job(folder: Path, cell: str = "abc") -> Job:
    """A job whose store is `runs` in `folder`."""
    return Job(cell, f"cell {cell}", str(folder), {"run": {"store": "runs"}})


def test_a_job_travels_by_name_and_value(there: Path) -> None:
    one = a_job(there)
    assert pickle.loads(cloudpickle.dumps(one)) == one
    assert pickle.loads(cloudpickle.dumps(job.run)) is job.run
    assert len(cloudpickle.dumps(job.run)) < 100  # a name: code by value would be longer


def test_a_mistake_on_a_node_is_the_outcome_of_the_cell(there: Path) -> None:
    container = compose(["model=tiny_bert"]) | {"data_dir": "gone"}
    assert job.run(Job("abc", "a cell", str(there), container)) == "error"
    noted = outcome.read(there / "runs" / "abc")
    assert (noted.cell, noted.label, noted.status, noted.code) == ("abc", "a cell", "error", worker.REFUSED)
    assert noted.lines == ("data_dir=gone is no folder; give the path of a folder of datasets in hub columns, or data_dir=null",)


def test_a_node_that_would_run_another_cell_refuses(there: Path) -> None:
    assert job.run(Job("0" * 12, "a cell", str(there), compose(["model=tiny_bert"]))) == "error"
    assert "on its node and 000000000000 where it was planned" in outcome.read(there / "runs" / ("0" * 12)).last_line


REQUEUES = {
    "the time limit is near": (signal.SIGUSR2, "1", 2, "requeue 17\n"),
    "too often already": (signal.SIGUSR2, "2", 2, ""),
    "somebody else's decision": (signal.SIGTERM, "0", 2, ""),
}


@pytest.mark.parametrize(("number", "restarts", "limit", "expected"), REQUEUES.values(), ids=REQUEUES.keys())
def test_a_job_asks_to_start_again_when_its_time_is_up(
    number: int, restarts: str, limit: int, expected: str, there: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(commands, "scontrol", f'echo "$@" >> {there}/calls')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)

    def stopped(one: Job) -> Outcome:
        os.kill(os.getpid(), number)
        while not dispatch.stopped():
            time.sleep(0.01)
        return Outcome(one.cell, one.label, "interrupted", worker.INTERRUPTED)

    monkeypatch.setattr(job, "_dispatched", stopped)
    try:
        assert job.run(Job("abc", "a cell", str(there), {}, limit)) == "interrupted"
    finally:
        dispatch.start_again()
    calls = there / "calls"
    assert (calls.read_text() if calls.exists() else "") == expected


def leave(one: Job, status: str) -> None:
    """An outcome in the cell's folder."""
    Outcome(one.cell, one.label, status, worker.ERROR, ("why",)).write(one.folder)


def test_a_job_that_starts_again_is_waited_for(there: Path) -> None:
    """Its first attempt leaves an outcome while it is still in the queue: that is not its end."""
    one = a_job(there)
    scenes = iter([lambda: {"7"}, lambda: leave(one, "interrupted") or {"7"}, lambda: leave(one, "diverged") or {"7"}, set])
    (ended,) = follow({"7": Awaited(one)}, lambda: next(scenes)(), 0.01)
    assert (ended.status, ended.lines) == ("diverged", ("why",))


def test_a_job_without_a_word_was_interrupted_whatever_an_earlier_sweep_left(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "GRACE", 0.0)
    one = a_job(there)
    leave(one, "oom")
    (there / "log.out").write_text("a\nb\n")
    (ended,) = follow({"7": Awaited(one, there / "log.out")}, set, 0.01)
    assert ended.status == "interrupted"
    assert ended.lines == ("a", "b", "job 7 left the queue without a word (killed, or its node failed)")
    assert outcome.read(one.folder) == ended


def test_a_late_file_is_waited_for(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "GRACE", 5.0)
    one = a_job(there)
    scenes = iter([set, set, lambda: leave(one, "error") or set()])
    assert [ended.status for ended in follow({"7": Awaited(one)}, lambda: next(scenes)(), 0.01)] == ["error"]


def test_a_silent_queue_ends_the_waiting(there: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(awaited, "PATIENCE", 0.0)
    answers = iter([{"7"}, None, None])
    assert list(follow({"7": Awaited(a_job(there))}, lambda: next(answers), 0.01)) == []
    assert "1 jobs may still run" in caplog.text


def test_the_log_tells_memory_and_time() -> None:
    assert sign(["slurmstepd: error: Detected 1 oom-kill event(s) in StepId=5.0."]) == "oom"
    assert sign(["slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***"]) == "timeout"
    assert sign(["slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 ***"]) == "interrupted"


def test_the_queue_is_told_apart_from_no_answer(commands: Path) -> None:
    stand_in(commands, "squeue", "echo '7_0|None'; echo '7_1|Priority'; echo '8|launch failed requeued held'")
    assert queued() == {"7_0", "7_1"}
    stand_in(commands, "squeue", "true")
    assert queued() == set()
    stand_in(commands, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert queued() is None


class Batches(ClusterLauncher):
    """Stands in for a cluster: notes which cells were handed over together; those named fail."""

    def __init__(self, failing: str) -> None:
        self.handed, self.failing = [], failing

    def job(self, cell: Any) -> Job:
        return a_job(cell.folder.parent.parent, cell.cell)

    def outcomes(self, jobs: list[Awaited]) -> Iterator[Outcome]:
        self.handed.append("".join(sorted(one.job.cell for one in jobs)))
        for one in jobs:
            yield Outcome(one.job.cell, "", "error" if one.job.cell in self.failing else "done", 0)


ORDERS = {
    "all end well": ("", ["ad", "b", "c"], "dddd"),
    "what others need fails": ("a", ["ad"], "essd"),
    "a leaf fails": ("d", ["ad", "b", "c"], "ddde"),
}


@pytest.mark.parametrize(("failing", "batches", "statuses"), ORDERS.values(), ids=ORDERS.keys())
def test_needed_cells_go_first(failing: str, batches: list[str], statuses: str, there: Path) -> None:
    """c needs b, which needs a; d needs none."""
    cells: dict[str, Any] = {}
    for name, needs in (("a", ""), ("b", "a"), ("c", "b"), ("d", "")):
        store = SimpleNamespace(record=lambda cell: None)
        shared = {"label": name, "overrides": (), "store": store, "folder": there / "runs" / name}
        cells[name] = SimpleNamespace(cell=name, needs=tuple(cells[need] for need in needs), **shared)
    launcher = Batches(failing)
    ended = launcher.run(list(cells.values()))
    assert launcher.handed == batches
    assert "".join(ended[name].status[0] for name in "abcd") == statuses


BAD = {
    "a package that is not there": ("hydra/launcher=slurm", "needs the package submitit; type: pip install 'submitit"),
    "the other package": ("hydra/launcher=ray", "needs the package ray; type: pip install 'ray"),
    "misspelt key": ("hydra/launcher=slurm hydra.launcher.minuts=1", "did you mean minutes?"),
    "a word for a number": ("hydra/launcher=slurm hydra.launcher.minutes=soon", "minutes=soon is not allowed; allowed: an integer"),
    "a signal at the start": ("hydra/launcher=slurm hydra.launcher.minutes=1", "signal_seconds=120 is not allowed; allowed: at most half"),
    "no CPU": ("hydra/launcher=ray hydra.launcher.cpus=0", "hydra.launcher.cpus=0 is out of range"),
}


@pytest.mark.parametrize(("line", "expected"), BAD.values(), ids=BAD.keys())
def test_one_sentence_before_anything_starts(
    line: str, expected: str, there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert parebench(["-m", "model=tiny_bert", *line.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert expected in err
    assert list(there.iterdir()) == []


def test_the_servers_children_hear_again() -> None:
    code = """
import os, signal
import harness.deaf
both = (signal.SIGTERM, signal.SIGUSR2)
assert all(signal.getsignal(n) == signal.SIG_IGN for n in both)
child = os.fork()
if child == 0:
    heard = all(signal.getsignal(n) == signal.SIG_DFL for n in both)
    signal.signal(signal.SIGTERM, print)
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(signal.getsignal(signal.SIGTERM) is print)
    os._exit(heard + 2 * os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
