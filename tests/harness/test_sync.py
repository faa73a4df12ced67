"""What is sent to Weights & Biases and when, on a store written by hand, with a stand-in for W&B that keeps what it is given."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import lease, runview, sync
from harness.cli import run
from harness.config import TrackerConfig
from harness.redact import redact
from harness.runview import Title
from harness.store import Store, write_json
from harness.sync import Mirror
from harness.tracking import Tracker, Unavailable
from methods.spec import UserError
from tests.harness.test_imports import files, imported

ROOT = Path(__file__).resolve().parents[2]
CELL = "0123456789ab"
CONFIG = {
    "method": {"name": "lora", "r": 8, "recipes": [{"when": {}}]}, "model": {"name": "m", "family": "encoder", "note": "n"},
    "task": {"name": "demo/sst2", "limit": None}, "budget": {"name": "smoke"}, "recipe": {"lr": 0.1, "batch": None}, "seed": 3,
    "precision": "float32", "run": {"sweep": "s", "store": "/secret/place"}, "data_dir": "/secret/data",
}  # fmt: skip


@dataclass
class FakeRun:
    """An open run of the stand-in."""

    title: Title
    known: int | None
    files: Path = Path("files")
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: tuple[Any, ...] = ()
    attached: list[str] = field(default_factory=list)
    server: "FakeTracker | None" = None

    def log(self, number: int, row: dict[str, Any]) -> None:
        self.server.asked()
        assert number not in self.rows
        self.rows[number] = row

    def attach(self, store: Path, files: Iterable[str]) -> None:
        self.server.asked()
        self.attached = [str(file) for file in files]

    def finish(self, title: Title, summary: dict[str, Any], table: list[list[Any]], code: int) -> None:
        self.server.asked()
        self.ended = (summary["status"], code)


@dataclass
class FakeTracker:
    """W&B with a memory and a switch."""

    online: bool = True
    destination: str = "fake"
    gone: bool = False
    runs: list[FakeRun] = field(default_factory=list)

    def asked(self) -> None:
        if self.gone:
            raise Unavailable("nobody is there")

    def check(self) -> None:
        self.asked()

    def begin(self, title: Title) -> FakeRun:
        self.asked()
        before = [run for run in self.runs if run.title.run == title.run]
        run = FakeRun(title, len(before[-1].rows) if before else None, server=self)
        if before:
            run.rows = before[-1].rows
        self.runs.append(run)
        return run


class Cell:
    """A cell's folder, written as a dispatcher and a worker would."""

    def __init__(self, store: Store) -> None:
        self.store, self.folder, self.clock = store, store.folder(CELL), time.time() - 100
        store.join("s", [], [{"cell": CELL}])

    def attempt(self, number: int) -> None:
        """A dispatcher takes the cell and its worker begins."""
        self.lease(number)
        self.begin()

    def lease(self, number: int) -> None:
        """A dispatcher, this process, takes the cell."""
        owner = {"host": "h", "machine": lease.machine(), "pid": os.getpid(), "start": lease.started(os.getpid()), "sweep": "s"}
        self.touch(f"attempts/{number}.json", json.dumps(owner | {"taken": self.clock + 0.5}))

    def begin(self) -> None:
        """Its worker begins."""
        self.touch("config.json", json.dumps(CONFIG))

    def curve(self, *steps: int, torn: str = "") -> None:
        """The learning curve up to now."""
        lines = [{"phase": "main", "step": s, "tokens": 10 * s, "seconds": 2.0 * s, "loss": 1 / s} for s in steps]
        self.touch("history.jsonl", "".join(json.dumps(line) + "\n" for line in lines) + torn)

    def end(self, number: int, status: str, code: int) -> None:
        """The dispatcher notes how the attempt ended."""
        ending = {"status": status, "code": code, "lines": ["boom token=abcdef123456"], "seconds": 1.5}
        self.touch(f"attempts/{number}.end.json", json.dumps(ending))

    def touch(self, name: str, text: str) -> None:
        """Write a file, a second after the one before."""
        self.clock += 1
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (self.clock, self.clock))


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """One cell of the sweep `s`, without an attempt."""
    return Cell(Store(tmp_path / "runs"))


def mirror(cell: Cell, tracker: FakeTracker, follow: bool = True, warned: list[str] | None = None) -> Mirror:
    """A mirror of the sweep."""
    return Mirror(cell.store, "s", tracker, follow, (warned if warned is not None else []).append)


def steps(run: FakeRun) -> list[int]:
    """The optimizer steps of a run's rows, in the order of their numbers."""
    assert list(run.rows) == list(range(len(run.rows)))
    return [row["train/main/step"] for row in run.rows.values()]


def test_lines_are_sent_as_they_come_and_a_torn_one_when_it_is_whole(cell: Cell) -> None:
    tracker = FakeTracker()
    live = mirror(cell, tracker)
    live.look()
    assert tracker.runs == []
    cell.attempt(1)
    cell.curve(1, 2, torn='{"phase": "main", "st')
    live.look()
    assert steps(tracker.runs[0]) == [1, 2]
    cell.curve(1, 2, 3)
    live.look()
    assert steps(tracker.runs[0]) == [1, 2, 3]
    assert tracker.runs[0].rows[2]["train/main/tokens_per_second"] == 5.0
    assert tracker.runs[0].ended == ()
    cell.end(1, "oom", -9)
    live.look()
    assert tracker.runs[0].ended == ("oom", 9)
    assert len(tracker.runs) == 1


def test_a_resumed_attempt_sends_no_line_that_it_drops(cell: Cell) -> None:
    """Attempt 1 reached step 3 with a checkpoint at 2; attempt 2 goes on from there."""
    tracker = FakeTracker()
    live = mirror(cell, tracker)
    cell.attempt(1)
    cell.curve(1, 2, 3)
    live.look()
    cell.lease(2)
    live.look()
    cell.begin()
    live.look()
    first, second = tracker.runs
    assert first.ended == ("interrupted", 1)
    assert second.rows == {}
    cell.curve(1, 2)
    live.look()
    cell.curve(1, 2, 3, 4)
    live.look()
    assert steps(second) == [1, 2, 3, 4]
    assert first.title.run.split("-")[:2] == [CELL, "1"]
    assert second.title.run.split("-")[:2] == [CELL, "2"]


def test_an_outage_is_told_once_and_what_is_missing_comes_later(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, warned = FakeTracker(), []
    live = mirror(cell, tracker, warned=warned)
    cell.attempt(1)
    cell.curve(1, 2)
    live.look()
    tracker.gone = True
    cell.curve(1, 2, 3)
    live.look()
    live.look()
    monkeypatch.setattr(sync, "REST", 0.0)
    live.resting = 0.0
    live.look()
    cell.end(1, "error", 3)
    live.look()
    live.leave()
    assert warned == ["nobody is there"]
    assert (live.report().sent, live.report().unsent) == (0, 1)
    tracker.gone = False
    late = mirror(cell, tracker, follow=False)
    late.look()
    assert (late.report().sent, late.report().unsent, late.problem) == (1, 0, "")
    assert tracker.runs[-1].known == 2
    assert steps(tracker.runs[-1]) == [1, 2, 3]
    again = mirror(cell, tracker, follow=False)
    again.look()
    assert again.report().sent == 0
    assert len(tracker.runs) == 2


def test_two_mirrors_never_write_one_run(cell: Cell) -> None:
    tracker = FakeTracker()
    one, other = mirror(cell, tracker), mirror(cell, tracker)
    cell.attempt(1)
    for live in (one, other, one):
        live.look()
    assert len(tracker.runs) == 1
    cell.end(1, "error", 3)
    for live in (other, one, other):
        live.look()
    assert len(tracker.runs) == 1
    assert (one.sent, other.sent) == (1, 0)


def test_only_what_has_ended_is_sent_afterwards(cell: Cell) -> None:
    tracker = FakeTracker()
    cell.attempt(1)
    late = mirror(cell, tracker, follow=False)
    late.look()
    assert tracker.runs == []
    assert late.report().sentence() == "runs: 0 sent, 1 still running"


def test_a_dead_attempt_is_not_shown_as_running(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = FakeTracker()
    cell.attempt(1)
    monkeypatch.setattr("harness.lease.started", lambda pid: None)
    mirror(cell, tracker).look()
    assert tracker.runs == []


def test_a_cell_that_never_ended_is_left_open_for_the_next_mirror(cell: Cell) -> None:
    tracker = FakeTracker()
    first = mirror(cell, tracker)
    cell.attempt(1)
    first.look()
    first.leave()
    assert tracker.runs[0].ended == ("interrupted", 1)
    cell.end(1, "timeout", 75)
    mirror(cell, tracker).look()
    assert tracker.runs[1].title.run == tracker.runs[0].title.run
    assert tracker.runs[1].ended == ("timeout", 75)


def test_the_class_of_an_attempt_that_was_taken_over_is_kept(cell: Cell) -> None:
    tracker = FakeTracker()
    live = mirror(cell, tracker)
    cell.attempt(1)
    live.look()
    cell.end(1, "timeout", 75)
    cell.attempt(2)
    live.look()
    assert [one.ended for one in tracker.runs] == [("timeout", 75), ()]


def test_a_cell_that_ended_without_a_configuration_is_nothing_to_send(cell: Cell) -> None:
    cell.lease(1)
    cell.end(1, "error", 3)
    late = mirror(cell, FakeTracker(), follow=False)
    late.look()
    assert late.report().sentence() == "runs: 0 sent"


def test_a_sweep_without_a_tracker_is_sent_nowhere(cell: Cell) -> None:
    with pytest.raises(UserError, match="tracker=none sends nothing"):
        sync.sync(cell.store.root, "s", TrackerConfig("none", "p", None, "w", 1.0))


def test_only_the_tracker_s_own_files_are_ever_removed(tmp_path: Path) -> None:
    tracker = Tracker(TrackerConfig("offline", "p", None, str(tmp_path / "w"), 1.0))
    for name in ("w/wandb/offline-run-1", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        tracker.discard(tmp_path / name)
    assert (tmp_path / "elsewhere").is_dir()
    assert not (tmp_path / "w/wandb/offline-run-1").exists()


def test_a_forced_rerun_is_another_run(cell: Cell) -> None:
    tracker = FakeTracker()
    cell.attempt(1)
    cell.end(1, "error", 3)
    mirror(cell, tracker).look()
    cell.folder.rename(cell.store.root / "aside")
    cell.attempt(1)
    cell.end(1, "error", 3)
    mirror(cell, tracker).look()
    assert len({run.title.run for run in tracker.runs}) == 2


def test_a_damaged_record_is_named_and_the_others_are_sent(cell: Cell) -> None:
    tracker, warned = FakeTracker(), []
    cell.attempt(1)
    cell.end(1, "error", 3)
    write_json(cell.store.folder("000000000000") / "record.json", {"schema": 1})
    cell.store.join("s", [], [{"cell": CELL}, {"cell": "000000000000"}])
    live = mirror(cell, tracker, warned=warned)
    live.look()
    assert len(warned) == 1
    assert "000000000000" in warned[0]
    assert (live.sent, live.report().unsent) == (1, 1)


def test_what_stands_above_an_unfinished_run_names_no_place(cell: Cell) -> None:
    cell.attempt(1)
    title = runview.newest(cell.store, CELL).title("s", "running")
    assert title.config == {
        "cell": CELL, "method": "lora", "method/r": 8, "family": "adapters", "model": "m", "model/family": "encoder", "seed": 3,
        "task": "demo/sst2", "task/limit": None, "budget": "smoke", "recipe/lr": 0.1, "precision": "float32",
    }  # fmt: skip
    assert (title.group, title.job_type, title.tags) == ("s", "lora", ("adapters", "m", "demo/sst2", "running"))


def test_last_lines_leave_without_secrets(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "swordfish")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    texts = {
        "key swordfish is false": "key *** is false",
        "GET https://me:pass@host/x?a=1": "GET https://***@host/x?a=1",
        "hf_abcdefghijklmnopqrstu was refused": "*** was refused",
        "Authorization: Bearer abc.def-123456": "Authorization: Bearer ***",
        f"key {'a1' * 20}, commit {'a1' * 4}": "key ***, commit a1a1a1a1",
        "tokens: 5 of 77": "tokens: 5 of 77",
    }
    assert {text: redact(text) for text in texts} == texts
    cell.attempt(1)
    cell.end(1, "error", 3)
    attempt = runview.newest(cell.store, CELL)
    assert runview.summary(attempt, attempt.ending())["log"] == "boom token=***"


MISTAKES = {
    "misspelt kind": ("tracker=ofline", "did you mean offline?"),
    "misspelt key": ("tracker.projct=x", "tracker.projct is unknown; did you mean project?"),
    "an added key": ("+tracker.projct=x", "tracker.projct is unknown; did you mean tracker.project?"),
    "unknown kind": ("tracker.kind=on", "tracker.kind=on is not allowed; allowed: none, offline, online"),
    "no time": ("tracker.timeout=0", "tracker.timeout=0.0 is out of range"),
    "a path as project": ("tracker.project=a/b", "tracker.project=a/b is not allowed"),
}


@pytest.mark.parametrize(("override", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_tracker_is_one_sentence(override: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "runs"
    assert run(["model=tiny_bert", "task=demo/sst2", f"run.store={store}", f"data_dir={tmp_path}", override]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not store.exists()


def test_only_one_file_knows_wandb() -> None:
    users = {path.name for folder in ("harness", "methods", "tasks") for path in files(folder) if "wandb" in imported(path)}
    assert users == {"tracking.py"}


@pytest.mark.parametrize("module", ["harness.cli", "harness.dispatch", "harness.mirror", "harness.worker", "harness.sync"])
def test_neither_cells_nor_dispatcher_import_wandb(module: str) -> None:
    code = f"import {module}, sys; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
