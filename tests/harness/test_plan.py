"""What the store says of a cell, by hand-made stores: every state, and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import lease, plan
from harness.compose import compose
from harness.outcome import Outcome
from harness.plan import Planned
from harness.record import NUMERICS, SCHEMA, Record, Result
from harness.store import Store
from methods.spec import UserError
from tests.contract.toy import write_toy_data

CELL = ["method=lora", "model=tiny_bert", "task=glue/sst2", "budget=smoke", "run.device=cpu"]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """One resolved configuration; composing costs more than everything else here."""
    return compose([*CELL, f"data_dir={write_toy_data(tmp_path_factory.mktemp('data'))}"])


@pytest.fixture
def check(container: dict, tmp_path: Path):
    """Plans that cell over this test's store, with `run` values changed."""

    def planned(**run) -> Planned:
        return plan.check(OmegaConf.create(container | {"run": container["run"] | {"store": str(tmp_path / "runs")} | run}))

    return planned


def record(cell: Planned, **changes) -> Record:
    """A fresh record of a cell, as today's code would make it, written to its store."""
    (cell.folder / "evals").mkdir(parents=True, exist_ok=True)
    (cell.folder / "evals" / "p.parquet").write_bytes(b"predictions")
    result = Result("p", "main", {"accuracy": 0.625}, "accuracy", True, 8, {}, "evals/p.parquet", 1, 0.1)
    made = Record(
        SCHEMA, cell.cell, "done", cell.identity.canonical, {}, None, 0, False, "", [result], {}, {}, [], {}, {}, {"harness": NUMERICS},
        cell.identity.sources, 2.0,
    )  # fmt: skip
    cell.store.write(replace(made, **changes))
    return cell.store.record(cell.cell)


def failed(cell: Planned, status: str = "oom", **changes) -> None:
    """An outcome of a cell's last attempt."""
    cell.folder.mkdir(parents=True)
    sources = changes.pop("sources", cell.identity.sources)
    Outcome(cell.cell, cell.label, status, 1, ("first", "the last line"), sources=sources, **changes).write(cell.folder)


def state(cell: Planned) -> tuple[str, str]:
    return cell.state, cell.reason


def test_an_empty_store_means_run(check) -> None:
    assert state(check()) == ("run", "")


def test_a_record_means_done_and_force_means_run(check) -> None:
    record(check())
    assert state(check()) == ("done", "")
    assert state(check(force=True)) == ("run", "forced")


def test_weights_that_were_not_kept_are_made_when_they_are_asked_for(check) -> None:
    cell = check()
    record(cell)
    assert state(check(keep_model=True)) == ("run", "its weights were not kept")
    (cell.folder / "model").mkdir()
    assert state(check(keep_model=True)) == ("done", "")


STALE = {
    "sources": ({"sources": {}}, "methods/adapters/lora.py has joined its imports"),
    "numerics": ({"numerics": {"harness": 0}}, f"the harness computes with numerics {NUMERICS}, it was made with 0"),
}


@pytest.mark.parametrize(("changes", "why"), STALE.values(), ids=STALE.keys())
def test_a_record_of_other_code_is_stale_until_it_is_said_what_it_is_worth(changes: dict, why: str, check) -> None:
    record(check(), **changes)
    found, reason = state(check())
    assert found == "stale" and reason.startswith("stale: ") and why in reason
    assert state(check(stale="keep")) == ("done", "")
    assert check(stale="rerun").state == "run"
    assert check(stale="rerun").reason == reason


def test_a_record_of_another_protocol_version_is_stale(check, container: dict) -> None:
    cell = check()
    made = record(cell)
    record(cell, results=[replace(made.results[0], version=0)])
    assert state(check()) == ("stale", "stale: p is of version 0, now 1")


@pytest.mark.parametrize("status", ["oom", "diverged", "error", "disk_full", "timeout"])
def test_a_failed_cell_waits_until_its_class_is_asked_for(status: str, check) -> None:
    failed(check(), status)
    assert state(check()) == ("waiting", f"{status}: the last line")
    assert state(check(retry=["interrupted"])) == ("waiting", f"{status}: the last line")
    assert state(check(retry=[status])) == ("run", "")


@pytest.mark.parametrize("changes", [{"status": "interrupted"}, {"status": "timeout", "progressed": True}, {"sources": {"x.py": "1"}}])
def test_what_was_interrupted_got_further_or_was_other_code_runs_by_itself(changes: dict, check) -> None:
    failed(check(), **changes)
    assert state(check()) == ("run", "")


def test_a_torn_outcome_says_nothing(check) -> None:
    cell = check()
    failed(cell)
    (cell.folder / "outcome.json").write_text('{"cell": "')
    assert state(check()) == ("run", "")


def test_a_living_lease_comes_before_everything_else(check) -> None:
    cell = check()
    record(cell)
    held = lease.take(cell.folder, None)
    for run in ({}, {"force": True}, {"stale": "rerun"}):
        assert state(check(**run)) == ("leased", "another sweep runs it")
    held.end({})
    assert state(check()) == ("done", "")


def test_a_damaged_lease_holds_nothing(check) -> None:
    cell = check()
    lease.take(cell.folder, None)
    (cell.folder / "attempts" / "1.json").write_text("")
    assert state(check()) == ("run", "")
    assert lease.take(cell.folder, None).number == 2


def _flip(text: str) -> str:
    assert text.count("0.625") == 1
    return text.replace("0.625", "0.635")


RECORD_DAMAGE = {
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a flipped digit in a metric": _flip,
    "not text": lambda text: "\udcff",
}


@pytest.mark.parametrize("damage", RECORD_DAMAGE.values(), ids=RECORD_DAMAGE.keys())
def test_a_damaged_record_is_named_and_runs_again(damage, check) -> None:
    cell = check()
    record(cell)
    path = cell.folder / "record.json"
    path.write_text(damage(path.read_text()), errors="surrogateescape")
    found, reason = state(check())
    assert found == "run"
    assert reason.startswith(f"damaged: {path} is damaged")
    assert state(check(stale="keep"))[0] == "run"


FILE_DAMAGE = {
    "is missing": lambda path: path.unlink(),
    "has changed since it was measured": lambda path: path.write_bytes(b"predictioms"),
}


@pytest.mark.parametrize(("words", "damage"), FILE_DAMAGE.items(), ids=FILE_DAMAGE.keys())
def test_damaged_predictions_are_named_and_run_again(words: str, damage, check) -> None:
    cell = check()
    record(cell)
    damage(cell.folder / "evals" / "p.parquet")
    assert state(check()) == ("run", f"damaged: evals/p.parquet {words}")


def test_the_record_of_another_configuration_is_refused(check) -> None:
    cell = check()
    record(cell, identity={**cell.identity.canonical, "seed": 5})
    with pytest.raises(UserError, match="holds the record of another configuration"):
        check()


def test_a_manifest_line_says_what_was_planned(check) -> None:
    cell = replace(check(), overrides=("method=lora", "method.r=4", "run.store=x"))
    line = cell.describe()
    assert line["cell"] == cell.cell and line["state"] == "run" and line["overrides"] == ["method=lora", "method.r=4", "run.store=x"]
    assert line["label"] == "lora tiny_bert glue/sst2 seed 0"
    store = Store(cell.store.root)
    plan.join([cell, replace(cell, state="duplicate")], ["-m", "x"])
    (manifest,) = (store.root / ".sweeps" / "adhoc").glob("*.json")
    assert json.loads(manifest.read_text())["cells"] == [line]
