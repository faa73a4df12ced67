"""A cell that was stopped or hit goes on from what is whole, and its record is the one that it would have made anyway."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness import cell as spine
from harness import guard, training
from harness.compose import compose
from harness.record import Record, from_json
from harness.store import file_hash
from methods.base import Method
from tests.contract.toy import write_toy_data
from tests.contract.trial import stable, stopping_after

STEPS, STOPPED = 6, 5
STATE = ["weights.safetensors", "method.safetensors", "COMPLETE"]
CHECKPOINT = [
    *[*STATE, "optimizer.safetensors", "optimizer.json", "scheduler.json", "rng.safetensors", "rng.json"],
    *["progress.json", "trainer_state.json"],
]
FINAL = [*STATE, "notes.json"]
SLOW = 0.1
"""Seconds that each step of the first attempt takes at least."""


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A cell of 6 steps with a checkpoint after 2 and 4, the selection metric after 2, 4 and 6; its masks lie in buffers."""
    data = write_toy_data(tmp_path_factory.mktemp("toy"))
    cell = ["method=magnitude", "model=tiny_bert", "task=glue/sst2", "task.max_length=32", "budget=smoke", "precision=float32"]
    short = [f"budget.examples={8 * STEPS}", "budget.evaluations=3", "recipe.batch=8", "recipe.lr=1e-2", "run.checkpoint_steps=2"]
    return compose([*cell, *short, f"data_dir={data}", "run.device=cpu", "run.eval_batch=16"])


def run(container: dict[str, Any], store: Path) -> Path:
    """Run the cell up to its unsealed record, or to where it is stopped; its folder."""
    with suppress(guard.Interrupted):
        spine.run_cell(container | {"run": container["run"] | {"store": str(store)}})
    (log,) = store.glob("*/config.json")
    return log.parent


def found(folder: Path) -> tuple[Record, dict[str, Any]]:
    """The record, and all of it that may not depend on interruptions, hashes of its predictions included."""
    record = from_json(json.loads((folder / "unsealed.json").read_text()))
    return record, stable(record) | {"predictions": {path.name: file_hash(path) for path in sorted(folder.glob("evals/*.parquet"))}}


@pytest.fixture(scope="module")
def expected(container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run leaves."""
    _, values = found(run(container, tmp_path_factory.mktemp("straight")))
    assert len(values["predictions"]) == 2
    assert values["phases"][0]["steps"] == STEPS
    return values


@pytest.fixture(scope="module")
def stopped(container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the cell stopped after 5 slow steps."""
    store = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, stopping_after(STOPPED):
        patch.setattr(Method, "on_step", lambda *args: time.sleep(SLOW))
        run(container, store)
    return store


@pytest.fixture(scope="module")
def trained(container: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the cell stopped between its training and its evaluation."""
    store = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spine, "check_weights", _interrupt)
        run(container, store)
    return store


def _interrupt(*args: Any) -> None:
    raise guard.Interrupted("here")


def copied(store: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A store of this test's own, and the folder of its cell's only phase."""
    shutil.copytree(store, tmp_path / "runs")
    (phase,) = (tmp_path / "runs").glob("*/checkpoints/main")
    return tmp_path / "runs", phase


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_the_lists_above_name_every_file(stopped: Path, trained: Path) -> None:
    (phase,) = stopped.glob("*/checkpoints/main")
    assert {path.name for path in phase.iterdir()} >= {"checkpoint-4", f"checkpoint-{STOPPED}"}
    assert {path.name for path in (phase / "checkpoint-4").iterdir()} == set(CHECKPOINT)
    for best in phase.glob("best-*"):
        assert {path.name for path in best.iterdir()} == set(STATE)
    (phase,) = trained.glob("*/checkpoints/main")
    assert {path.name for path in (phase / "final").iterdir()} == set(FINAL)


@pytest.mark.parametrize("victim", [None, *CHECKPOINT])
def test_a_stopped_cell_goes_on_from_its_newest_whole_checkpoint(
    victim: str | None, container: dict[str, Any], stopped: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    store, phase = copied(stopped, tmp_path)
    newest = phase / f"checkpoint-{STOPPED}"
    if victim:
        halve(newest / victim)
    resumed = training.resumable(phase)
    assert resumed.name == ("checkpoint-4" if victim else newest.name)
    earlier = json.loads((resumed / "progress.json").read_text())["seconds"]
    record, values = found(run(container, store))
    assert values == expected
    assert int(resumed.name.partition("-")[2]) * SLOW < earlier < record.phases[0].seconds
    assert earlier < record.seconds


@pytest.mark.parametrize("victim", STATE)
def test_a_damaged_best_state_is_made_again(
    victim: str, container: dict[str, Any], stopped: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    store, phase = copied(stopped, tmp_path)
    step = json.loads((phase / f"checkpoint-{STOPPED}" / "progress.json").read_text())["best_step"]
    halve(phase / f"best-{step}" / victim)
    assert getattr(training.resumable(phase), "name", None) != f"checkpoint-{STOPPED}"
    assert found(run(container, store))[1] == expected


@pytest.mark.parametrize("victim", [None, *FINAL])
def test_a_trained_cell_is_only_evaluated_and_one_whose_state_is_damaged_trains_its_last_steps(
    victim: str | None, container: dict[str, Any], trained: Path, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, phase = copied(trained, tmp_path)
    if victim:
        halve(phase / "final" / victim)
    steps: list[int] = []
    monkeypatch.setattr(Method, "on_step", lambda self, model, step, ctx: steps.append(step))
    assert found(run(container, store))[1] == expected
    assert steps == ([4, 5] if victim else [])


def test_what_a_kill_left_half_written_is_swept_away(container: dict[str, Any], stopped: Path, tmp_path: Path) -> None:
    store, phase = copied(stopped, tmp_path)
    (phase / ".checkpoint-6.abcd").mkdir()
    (phase / ".checkpoint-6.abcd" / "weights.safetensors").write_bytes(b"half")
    run(container, store)
    assert not list(phase.glob(".*"))


class TwoPhases(Method):
    """Selects in its first phase alone."""

    def fit(self, model, ctx):
        model = ctx.train(model, "first", share=0.5)
        return ctx.train(model, "second", share=0.5, select=False)


class TwoSelections(Method):
    """Selects in both."""

    def fit(self, model, ctx):
        return ctx.train(ctx.train(model, "first", share=0.5), "second", share=0.5)


@pytest.mark.parametrize(("method", "steps"), [(TwoPhases, 10**9), (TwoSelections, STEPS // 2 + 1)], ids=["after both", "in the second"])
def test_results_of_several_phases_come_back_once_each(
    method: type[Method], steps: int, container: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spine, "method_class", lambda slug: method)
    _, straight = found(run(container, tmp_path / "straight"))
    with pytest.MonkeyPatch.context() as patch, stopping_after(steps):
        patch.setattr(spine, "check_weights", _interrupt)
        folder = run(container, tmp_path / "resumed")
    assert not (folder / "unsealed.json").exists()
    assert (folder / "checkpoints" / "first" / "final").exists()
    assert found(run(container, tmp_path / "resumed"))[1] == straight
