"""The state of a cell from its files: every state, and which of several signs comes first."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import manifest, progress, status
from harness.store import Store, write_json
from methods.spec import UserError
from tests.harness import stores
from tests.harness.stores import OPEN


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in which nobody runs anything and no record is stale."""
    stores.living(monkeypatch)
    monkeypatch.setattr("harness.stale.reasons", lambda record, store: [])
    return Store(tmp_path / "runs")


def done(store: Store) -> None:
    """An ended attempt and a record."""
    stores.begun(store, "a")
    store.write(stores.record("a"))


def rerun_that_died(store: Store) -> None:
    """A record, and a later attempt that nobody ended."""
    stores.begun(store, "a", attempts=2, ended=OPEN)
    store.write(stores.record("a"))


def failed_then_died(store: Store) -> None:
    """A failure, and a later attempt that nobody ended."""
    stores.failed(store, "a", "oom")
    stores.begun(store, "a", attempts=2, ended=OPEN)


def record_over_failure(store: Store) -> None:
    """A record beside what an earlier attempt left."""
    stores.failed(store, "a", "error")
    store.write(stores.record("a"))


def damaged_record(store: Store) -> None:
    """Half a record."""
    stores.begun(store, "a")
    (store.folder("a") / "record.json").write_text('{"schema": 1')


def damaged_outcome(store: Store) -> None:
    """An outcome that is no outcome."""
    (stores.failed(store, "a", "error") / "outcome.json").write_text("[]")


SIGNS: dict[str, tuple[Callable[[Store], object], str]] = {
    "nothing": (lambda store: None, "missing"),
    "a record": (done, "done"),
    "an attempt without an end": (lambda store: stores.begun(store, "a", ended=OPEN), "interrupted"),
    "a stop on request": (lambda store: stores.failed(store, "a", "interrupted"), "interrupted"),
    "a record before a dead attempt": (rerun_that_died, "done"),
    "a dead attempt before an older failure": (failed_then_died, "interrupted"),
    "a record before a failure": (record_over_failure, "done"),
    "a damaged record": (damaged_record, "damaged"),
    "a damaged outcome": (damaged_outcome, "damaged"),
    **{name: (lambda store, name=name: stores.failed(store, "a", name), name) for name in status.FAILED},
}


@pytest.mark.parametrize(("lay_out", "expected"), SIGNS.values(), ids=SIGNS.keys())
def test_every_sign_has_its_state(lay_out: Callable, expected: str, store: Store) -> None:
    lay_out(store)
    assert status.state(store, "a").state == expected
    assert expected in status.STATES


def test_a_living_owner_comes_before_a_record_but_not_after_its_own_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rerun_that_died(store)
    stores.living(monkeypatch, a="s")
    assert status.state(store, "a").state == "running"
    assert status.state(store, "a").seconds == pytest.approx(60, abs=30)
    write_json(store.folder("a") / "attempts" / "2.end.json", {})
    assert status.state(store, "a").state == "done"


def test_a_stale_record_says_why_and_keeps_its_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    done(store)
    monkeypatch.setattr("harness.stale.reasons", lambda record, store: [f"{record.cell} changed", "numerics 1 -> 2"])
    found = status.state(store, "a")
    assert (found.state, found.reasons, found.headline) == ("stale", ("a changed", "numerics 1 -> 2"), "sst2@last 0.625")


def test_a_record_gives_label_seconds_and_headline(store: Store) -> None:
    done(store)
    found = status.state(store, "a")
    assert (found.label, found.seconds, found.headline) == ("lora tiny_bert demo/sst2 seed 0", 10.0, "sst2@last 0.625")
    store.write(stores.record("b", "none", trained=False))
    assert status.state(store, "b").label == "none tiny_bert demo/sst2"


def test_a_failure_gives_its_last_line_and_seconds(store: Store) -> None:
    stores.failed(store, "a", "diverged", "the loss is not finite")
    found = status.state(store, "a")
    assert (found.reasons, found.seconds, found.label) == (("the loss is not finite",), 7.25, "lora tiny_bert demo/sst2 seed 0")


def test_a_sweep_lists_its_grid_in_order_with_the_values_that_differ(store: Store) -> None:
    done(store)
    stores.failed(store, "b", "oom")
    cells = (
        "a method=lora method.r=4 task.limit=8",
        "b method=lora method.r=8 task.limit=8",
        " method=none task.limit=8",
        "c task.limit=8",
    )
    stores.manifest(store, *cells)
    found = status.sweep(store, "s")
    assert [(one.cell, one.label, one.values, one.state) for one in found] == [
        ("a", "label a", "method.r=4", "done"), ("b", "label b", "method.r=8", "oom"),
        ("", "label", "", "skipped"), ("c", "label c", "", "missing"),
    ]  # fmt: skip
    assert found[2].reasons == ("it cannot be",)
    assert status.totals(found) == {"done": 1, "missing": 1, "oom": 1, "skipped": 1}


def test_a_cell_not_begun_is_queued_only_while_its_own_sweep_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.begun(store, "a", ended=OPEN)
    stores.manifest(store, "a", "b")
    owners = stores.living(monkeypatch, a="another")
    assert [cell.state for cell in status.sweep(store, "s")] == ["running", "missing"]
    owners["a"] = "s"
    assert [cell.state for cell in status.sweep(store, "s")] == ["running", "queued"]


def test_two_commands_of_a_sweep_are_joined_and_duplicates_dropped(store: Store) -> None:
    stores.manifest(store, "a x=1", "b", name="new", written=2.0)
    stores.manifest(store, "c", "a", " method=none", name="old", written=1.0)
    commands = manifest.commands(store.root, "s")
    assert [command.written for command in commands] == [1.0, 2.0]
    assert [(cell["cell"], cell["overrides"]) for cell in manifest.distinct(commands)] == [
        ("c", []), ("a", ["x=1"]), ("", ["method=none"]), ("b", []),
    ]  # fmt: skip


def test_an_unknown_sweep_names_the_nearest_and_a_damaged_manifest_itself(store: Store) -> None:
    stores.manifest(store, "a", sweep="quickstart")
    with pytest.raises(UserError, match=r"sweep quickstrat is unknown; did you mean quickstart\?"):
        status.sweep(store, "quickstrat")
    (store.root / ".sweeps" / "quickstart" / "0.json").write_text("{")
    with pytest.raises(UserError, match=r"0\.json is damaged"):
        status.sweep(store, "quickstart")


def test_all_cells_are_told_apart_by_what_differs_among_equal_labels(store: Store) -> None:
    for cell, rank in (("a", 4), ("b", 8)):
        store.write(stores.record(cell, settings={"r": rank, "alpha": 16}))
    store.write(stores.record("c", "bitfit"))
    stores.manifest(store, "a")
    assert [(cell.cell, cell.values) for cell in status.all_cells(store)] == [("c", ""), ("a", "method.r=4"), ("b", "method.r=8")]


LINE = {"phase": "main", "step": 10, "examples": 320, "tokens": 5000, "seconds": 20.0, "loss": 0.5}


def test_progress_is_arithmetic_on_the_last_points_of_the_curve(tmp_path: Path) -> None:
    write_json(tmp_path / "progress.json", {"phase": "main", "step": 30, "steps": 100})
    last = LINE | {"step": 30, "examples": 960, "tokens": 9000, "seconds": 36.0, "loss": 0.25}
    chosen = {"phase": "main", "step": 30, "selection/accuracy": 0.5}
    stores.history(tmp_path, LINE | {"phase": "other", "loss": 9.0}, LINE, last, chosen, torn='{"phase": "main", "st')
    found = progress.read(tmp_path)
    assert (found.where, found.loss, found.unit) == ("main 30/100", 0.25, "examples")
    assert found.speed == (960 - 320) / (36 - 20)
    assert found.eta == (100 - 30) * 36 / 30


def test_progress_over_the_whole_phase_where_one_point_is_known_or_a_resume_lies_between(tmp_path: Path) -> None:
    write_json(tmp_path / "progress.json", {"phase": "main", "step": 0, "steps": 40})
    stores.history(tmp_path, LINE)
    assert progress.read(tmp_path).speed == 320 / 20
    assert progress.read(tmp_path).step == 10
    stores.history(tmp_path, LINE | {"seconds": 50.0}, LINE)
    assert progress.read(tmp_path).speed == 320 / 20
    stores.history(tmp_path, {key: value for key, value in LINE.items() if key != "examples"})
    assert (progress.read(tmp_path).speed, progress.read(tmp_path).unit) == (5000 / 20, "tokens")


def test_progress_before_the_first_point_and_before_the_first_phase(tmp_path: Path) -> None:
    assert progress.read(tmp_path) is None
    (tmp_path / "progress.json").write_text("{")
    assert progress.read(tmp_path) is None
    write_json(tmp_path / "progress.json", {"phase": "main", "step": 0, "steps": 40})
    found = progress.read(tmp_path)
    assert (found.where, found.speed, found.eta) == ("main 0/40", None, None)


def test_only_the_tail_of_a_long_curve_is_read(tmp_path: Path) -> None:
    lines = [LINE | {"step": n} for n in range(1000)]
    stores.history(tmp_path, *lines)
    found = progress.tail(tmp_path / "history.jsonl")
    assert found == lines[-len(found) :]
    assert 0 < len(found) <= progress.TAIL / len(json.dumps(LINE))
