"""Sweeps on a real local Ray: they finish, and a lost worker's cell is started again and resumes."""

import os
import signal
from pathlib import Path

import pytest

from harness.store import Store
from tests.cluster.onenode import wait_until
from tests.cluster.sweeps import Sweeps, ended, history, needs

pytestmark = pytest.mark.cluster
LAUNCHER = ["-m", "hydra/launcher=ray", "hydra.launcher.workers=2"]
LONG = ["method=full_ft", "budget.examples=3200", "run.checkpoint_steps=20", "run.threads=1"]


@pytest.fixture
def sweeps(tmp_path: Path, assets: Path) -> Sweeps:
    """`parebench` in an empty folder; Ray's own files go to another, and its workers are not niced (15 by default)."""
    needs("ray")
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    return Sweeps(tmp_path / "work", assets, {"HOME": str(tmp_path / "home"), "RAY_worker_niceness": "0"})


def test_a_sweep_of_four_finishes(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*LAUNCHER, "method=full_ft,bitfit", "seed=0,1")
    assert code == 0, output
    assert "4 done, 0 skipped, 0 failed" in output
    records = list(Store(sweeps.folder / "runs").records())
    assert sorted((r.identity["method"]["name"], r.seed) for r in records) == [(m, s) for m in ("bitfit", "full_ft") for s in (0, 1)]


def test_a_killed_worker_costs_an_attempt_not_the_cell(sweeps: Sweeps) -> None:
    process, store = sweeps.start(*LAUNCHER, *LONG), sweeps.folder / "runs"
    try:
        wait_until(lambda: len(history(store)) >= 3, "the third line of the learning curve")
        (worker,) = workers_with(sweeps.environment["HOME"])
        os.kill(worker, signal.SIGKILL)
    finally:
        code, output = ended(process)
    assert code == 0, output
    (record,) = Store(store).records()
    assert record.attempts == 2
    steps = [line["step"] for line in history(store)]
    assert steps == sorted(set(steps)) and steps[-1] == 100


def test_ctrl_c_saves_the_running_cells(sweeps: Sweeps) -> None:
    process, store = sweeps.start(*LAUNCHER, *LONG), sweeps.folder / "runs"
    try:
        wait_until(lambda: len(history(store)) >= 3, "the third line of the learning curve")
        process.send_signal(signal.SIGINT)
    finally:
        code, output = ended(process)
    assert code == 130, output
    assert [file.parent.name for file in store.glob("*/outcome.json")] and not list(Store(store).records())
    last = history(store)[-1]["step"]
    assert list(store.glob(f"*/checkpoints/main/checkpoint-{last}"))


def test_a_cell_that_fits_on_no_node_is_refused(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*LAUNCHER, "hydra.launcher.cpus=4096")
    assert code == 2
    assert "hydra.launcher.cpus=4096 hydra.launcher.gpus=0 fits on no node" in output


def workers_with(home: str) -> list[int]:
    """Ray's workers that run a cell, of the Ray that was started with this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if title.startswith(b"ray::run") and f"HOME={home}".encode() in variables:
            found.append(int(folder.name))
    return found
