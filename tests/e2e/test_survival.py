"""A sweep that is killed and started again ends with the records of one that was left alone; a short `tests/bench/kill_sweep.py`."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness import lease
from harness.store import Store
from tests.contract.toy import write_toy_data
from tests.killing import Fire, command, done, kept, ran_again, stages, start

GRID = [
    *["method=lora,magnitude", "model=tiny_bert", "seed=0,1", "task=glue/sst2", "task.max_length=32", "budget=smoke"],
    *["budget.examples=1200", "budget.evaluations=3", "recipe.batch=4", "recipe.lr=1e-3", "run.checkpoint_steps=10"],
    "hydra.launcher.workers=2",
]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*GRID, f"data_dir={write_toy_data(tmp_path_factory.mktemp('data'))}"]


@pytest.fixture(scope="module")
def calm(grid: list[str], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two simultaneous sweeps over one store, so that it also shows what they make of each other."""
    folder = tmp_path_factory.mktemp("calm")
    sweeps = [start(command(folder / "runs", *grid), folder / f"{number}.log") for number in range(2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], "".join(path.read_text() for path in folder.glob("*.log"))
    return Store(folder / "runs")


def test_two_simultaneous_sweeps_run_every_cell_once(calm: Store) -> None:
    assert len(done(calm)) == 4
    for cell in done(calm):
        assert lease.latest(calm.folder(cell)) == 1
        assert calm.record(cell).attempts == 1


@pytest.mark.parametrize("seed", [1])
def test_a_killed_sweep_ends_like_one_that_was_left_alone(seed: int, grid: list[str], calm: Store, tmp_path: Path) -> None:
    fire = Fire(command(tmp_path / "runs", *grid), Store(tmp_path / "runs"), random.Random(seed))
    assert fire.run(kills=4) == 0, fire.log.read_text()
    assert sum(fire.landed.values()) == 4
    assert kept(fire.store) == kept(calm)
    assert not fire.changed() and not ran_again(fire.store)


def wait_for(sweep: subprocess.Popen[bytes], store: Store, stage: str) -> list[int]:
    """Processes of the cells that are at a stage, as soon as there is one."""
    while sweep.poll() is None:
        if found := [pid for pid, now in stages(store).items() if now == stage]:
            return found
        time.sleep(0.01)
    raise AssertionError(f"the sweep ended with {sweep.returncode} before any cell was at {stage}")


def test_asked_to_stop_cells_save_and_go_on_to_the_same_records(grid: list[str], calm: Store, tmp_path: Path) -> None:
    """SIGTERM and SIGUSR2, to the dispatcher and to a cell's process."""
    store, log, stopped = Store(tmp_path / "runs"), tmp_path / "log", set()
    for number in (signal.SIGTERM, signal.SIGUSR2):
        sweep = start(command(store.root, *grid), log)
        wait_for(sweep, store, "training")
        sweep.send_signal(number)
        assert sweep.wait() == 130, log.read_text()
        assert stages(store) == {}
        ends = {path.parent.name: lease.ending(path.parent, lease.latest(path.parent)) for path in store.root.glob("*/attempts")}
        assert {end["status"] for end in ends.values()} <= {"interrupted", "done"}
        stopped |= {cell for cell, end in ends.items() if end["status"] == "interrupted"}
    assert stopped
    sweep = start(command(store.root, *grid), log)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        hit = wait_for(sweep, store, "training")[0]
        os.kill(hit, number)
        while hit in stages(store):
            time.sleep(0.01)
    assert sweep.wait() == 0, log.read_text()
    assert kept(store) == kept(calm)
    assert all(store.record(cell).attempts > 1 for cell in stopped)
    assert sum(record.attempts for record in store.records()) > 4 + len(stopped)
