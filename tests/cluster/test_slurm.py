"""Sweeps on a real one-node SLURM without accounting: they finish, resume after a requeue, and end when a job is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from harness.record import Record
from harness.store import Store
from tests.cluster.onenode import OneNode, missing, wait_until
from tests.cluster.sweeps import Sweeps, ended, history, needs

pytestmark = pytest.mark.cluster
LAUNCHER = ["-m", "hydra/launcher=slurm", "hydra.launcher.cpus=1", "hydra.launcher.mem_gb=1", "hydra.launcher.poll_seconds=1"]
LONG = ["method=full_ft", "budget.examples=3200", "run.checkpoint_steps=20", "run.threads=1"]
STEPS = 100
REQUEUES = {
    "by scontrol requeue": lambda node, job: node.client("scontrol", "requeue", job),
    "by the signal before the time limit": lambda node, job: node.client("scancel", "--signal=USR2", job),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneNode]:
    """A running one-node SLURM."""
    needs("submitit")
    if reason := missing():
        pytest.skip(reason)
    node = OneNode(tmp_path_factory.mktemp("slurm"))
    try:
        node.start()
        yield node
    finally:
        node.stop()


@pytest.fixture
def sweeps(node: OneNode, tmp_path: Path, assets: Path) -> Sweeps:
    """`parebench` in an empty folder, as a client of the node."""
    return Sweeps(tmp_path, assets, node.environment)


@pytest.fixture(scope="module")
def uninterrupted(node: OneNode, tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    """The store of a run of the long cell without SLURM and without a stop."""
    sweeps = Sweeps(tmp_path_factory.mktemp("uninterrupted"), assets, {})
    code, output = sweeps.run(*LONG)
    assert code == 0, output
    return sweeps.folder / "runs"


def test_a_sweep_of_four_finishes_and_is_not_submitted_again(sweeps: Sweeps) -> None:
    grid = [*LAUNCHER, "method=full_ft,bitfit", "seed=0,1"]
    code, output = sweeps.run(*grid)
    assert code == 0, output
    assert "4 done, 0 skipped, 0 failed" in output
    records = list(Store(sweeps.folder / "runs").records())
    assert sorted((r.identity["method"]["name"], r.seed) for r in records) == [(m, s) for m in ("bitfit", "full_ft") for s in (0, 1)]
    assert {record.numerics["threads"] for record in records} == {1}  # hydra.launcher.cpus
    submissions = list((sweeps.folder / "runs" / ".hydra" / "slurm").glob("*_submission.sh"))
    assert len(submissions) == 1  # an array of four
    code, output = sweeps.run(*grid)
    assert (code, "0 to run, 4 already done" in output) == (0, True), output
    assert list((sweeps.folder / "runs" / ".hydra" / "slurm").glob("*_submission.sh")) == submissions


@pytest.mark.parametrize("requeue", REQUEUES.values(), ids=REQUEUES.keys())
def test_a_requeued_job_resumes(requeue: Callable[[OneNode, str], str], sweeps: Sweeps, node: OneNode, uninterrupted: Path) -> None:
    """Its predictions are those of the uninterrupted run bit for bit, its learning curve goes on where it stopped."""
    process, store = sweeps.start(*LAUNCHER, *LONG), sweeps.folder / "runs"
    try:
        wait_until(lambda: len(history(store)) >= 3, "the third line of the learning curve")
        requeue(node, node.client("squeue", "--noheader", "--format=%A"))
    finally:
        code, output = ended(process)
    assert code == 0, output
    assert "1 done, 0 skipped, 0 failed" in output
    (record,), (expected,) = Store(store).records(), Store(uninterrupted).records()
    assert (record.attempts, expected.attempts) == (2, 1)
    assert record.cell == expected.cell
    assert results(record) == results(expected)
    pd.testing.assert_frame_equal(predictions(store), predictions(uninterrupted), check_exact=True)
    assert_continues(history(store), history(uninterrupted))


def results(record: Record) -> list[tuple[str, str, dict[str, float]]]:
    """Each result's protocol, variant and metrics."""
    return [(r.protocol, r.variant, r.metrics) for r in record.results]


def predictions(store: Path) -> pd.DataFrame:
    """The per-example predictions of the only cell."""
    (file,) = store.glob("*/evals/*.main.parquet")
    return pd.read_parquet(file)


def assert_continues(curve: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """Steps rise to the last; gradient norms (of single steps, unlike the averaged losses) are those of the uninterrupted run."""
    steps = [line["step"] for line in curve]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    norms = {line["step"]: line["grad_norm"] for line in curve}
    assert {step: norms[step] for step in norms if step % 10 == 0} == {line["step"]: line["grad_norm"] for line in expected}


def test_a_job_killed_hard_ends_the_sweep(sweeps: Sweeps, node: OneNode) -> None:
    """SIGKILL to every process of one of two jobs: without accounting nobody reports its end, and the sweep ends all the same."""
    process, store = sweeps.start(*LAUNCHER, *LONG, "seed=0,1"), sweeps.folder / "runs"
    try:
        wait_until(lambda: history(store), "a learning curve")
        for pid in processes_of_job("0"):
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
    finally:
        code, output = ended(process)
    assert code == 1, output
    assert "1 done, 0 skipped, 1 failed" in output
    assert "left the queue without a word" in output
    assert time.monotonic() - killed < 240
    assert not node.client("squeue", "--noheader")
    code, output = sweeps.run(*LAUNCHER, *LONG, "seed=0,1")
    assert code == 0, output
    assert sorted(record.attempts for record in Store(store).records()) == [1, 2]


def processes_of_job(index: str) -> list[int]:
    """The processes that belong to an element of the job array, its dispatcher first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURM_ARRAY_TASK_ID={index}".encode() in variables and b"SLURM_STEP_ID=0" in variables:
            found.append(int(folder.name))
    return found


def test_a_refused_submission_is_one_sentence(sweeps: Sweeps) -> None:
    code, output = sweeps.run(*LAUNCHER, "hydra.launcher.partition=nowhere")
    assert code == 2
    assert "parebench: SLURM refused the jobs: " in output and "nvalid partition" in output
