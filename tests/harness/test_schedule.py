"""The order of a sweep's cells, with stand-ins for cells and for what running them does."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import lease, outcome, schedule
from harness.outcome import Outcome


@dataclass
class Fake:
    """What the schedule knows of a planned cell."""

    cell: str
    root: Path
    needs: tuple["Fake", ...] = ()
    state: str = "run"
    reason: str = ""
    way: str = ""

    def now(self) -> tuple[str, str]:
        return self.state, self.reason

    @property
    def label(self) -> str:
        return f"cell {self.cell}"

    @property
    def folder(self) -> Path:
        return self.root / self.cell


@dataclass
class Runner:
    """Notes the order of runs; every cell ends as `endings` says, at its n-th run with its n-th word."""

    endings: dict[str, Sequence[str]] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    hook: Callable[[str], None] = lambda cell: None

    def __call__(self, cell: Fake) -> Outcome:
        words = self.endings.get(cell.cell, ["done"])
        status = words[min(self.ran.count(cell.cell), len(words) - 1)]
        self.ran.append(cell.cell)
        self.hook(cell.cell)
        return Outcome(cell.cell, cell.label, status, 0 if status == "done" else 1)


def statuses(cells: Sequence[Fake], run: Runner, workers: int = 1, stopped: Callable[[], bool] = lambda: False) -> dict[str, str]:
    """Outcomes by cell, in the order they came."""
    return {ended.cell: ended.status for ended in schedule.run_all(cells, workers, run, stopped)}


def test_one_worker_runs_in_the_order_given(tmp_path: Path) -> None:
    run = Runner()
    assert statuses([Fake(name, tmp_path) for name in "cab"], run) == {"c": "done", "a": "done", "b": "done"}
    assert run.ran == ["c", "a", "b"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_as_many_run_at_once_as_there_are_workers(workers: int, tmp_path: Path) -> None:
    together, lock, now, most = threading.Barrier(workers), threading.Lock(), [0], [0]

    def meet(cell: str) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(30)  # broken unless that many run at once
        with lock:
            now[0] -= 1

    statuses([Fake(name, tmp_path) for name in "abcdef"], Runner(hook=meet), workers)
    assert most == [workers]


def test_a_cell_runs_after_those_that_it_needs(tmp_path: Path) -> None:
    base = Fake("base", tmp_path)
    middle = Fake("middle", tmp_path, (base,))
    run = Runner()
    statuses([Fake("last", tmp_path, (middle, base)), middle, base, Fake("free", tmp_path)], run)
    assert run.ran == ["base", "middle", "last", "free"]


def test_what_needs_a_failed_cell_is_skipped_with_the_reason_and_so_is_what_needs_that(tmp_path: Path) -> None:
    base = Fake("base", tmp_path)
    middle = Fake("middle", tmp_path, (base,))
    run = Runner({"base": ["oom"]})
    cells = [base, middle, Fake("last", tmp_path, (middle,)), Fake("free", tmp_path)]
    assert statuses(cells, run) == {"base": "oom", "middle": "skipped", "last": "skipped", "free": "done"}
    assert run.ran == ["base", "free"]
    assert outcome.read(tmp_path / "middle").last_line == "it needs cell base (base), which is not done: oom"
    assert (
        outcome.read(tmp_path / "last").last_line
        == "it needs cell middle (middle), which is not done: skipped (it needs cell base (base), which is not done: oom)"
    )


@pytest.mark.parametrize(("state", "status"), [("done", "done"), ("waiting", "skipped"), ("stale", "skipped")])
def test_a_needed_cell_that_does_not_run_counts_as_it_was_planned(state: str, status: str, tmp_path: Path) -> None:
    need = Fake("need", tmp_path, state=state, reason="diverged: loss is nan")
    assert statuses([Fake("cell", tmp_path, (need,))], Runner()) == {"cell": status}
    if status == "skipped":
        why = f"it needs cell need (need), which is not done: {state} (diverged: loss is nan)"
        assert outcome.read(tmp_path / "cell").last_line == why


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the cells that another sweep holds; looking at one makes it free the third time."""
    names: set[str] = set()
    looks: list[str] = []

    def holder(folder: Path) -> str | None:
        looks.append(folder.name)
        if looks.count(folder.name) > 2:
            names.discard(folder.name)
        return folder.name if folder.name in names else None

    monkeypatch.setattr(lease, "holder", holder)
    monkeypatch.setattr(schedule, "POLL", 0.01)
    return names


def test_cells_of_another_sweep_come_last(held: set[str], tmp_path: Path) -> None:
    held.add("b")
    run = Runner({"b": ["leased", "done"]})
    assert list(statuses([Fake(name, tmp_path) for name in "abc"], run)) == ["a", "c", "b"]
    assert run.ran == ["a", "b", "c", "b"]


def test_a_cell_that_is_free_again_does_not_wait_for_those_that_are_not(held: set[str], tmp_path: Path) -> None:
    """b is held for as long as a has not run a second time."""
    held.add("b")
    run = Runner({"a": ["leased", "done"], "b": ["leased", "done"]})
    assert list(statuses([Fake(name, tmp_path) for name in "ba"], run)) == ["a", "b"]


def test_what_needs_a_cell_of_another_sweep_waits_for_it_and_leaves_no_word(held: set[str], tmp_path: Path) -> None:
    held.add("need")
    need = Fake("need", tmp_path, state="leased")
    run = Runner({"need": ["leased", "done"]})
    assert statuses([need, Fake("cell", tmp_path, (need,))], run) == {"need": "done", "cell": "done"}
    assert run.ran == ["need", "need", "cell"]
    assert outcome.read(tmp_path / "cell") is None


def test_nothing_starts_once_it_is_to_stop(tmp_path: Path) -> None:
    run = Runner()
    cells = [Fake(name, tmp_path) for name in "abcd"]
    assert statuses(cells, run, stopped=lambda: len(run.ran) >= 2) == {"a": "done", "b": "done"}


def test_waiting_for_another_sweep_ends_when_it_is_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "holder", lambda folder: "somebody")
    monkeypatch.setattr(schedule, "POLL", 0.01)
    run, looks = Runner({"a": ["leased"]}), iter([False] * 8 + [True] * 100)
    assert statuses([Fake("a", tmp_path)], run, stopped=lambda: next(looks)) == {}
    assert run.ran == ["a"]


def test_in_turn_ends_with_the_first_that_does_not_end_well(tmp_path: Path) -> None:
    base = Fake("base", tmp_path)
    cells = [base, Fake("middle", tmp_path, (base,)), Fake("last", tmp_path)]
    run = Runner({"middle": ["oom"]})
    cell, ended = schedule.in_turn(cells, run, lambda: False)
    assert (cell.cell, ended.status, run.ran) == ("middle", "oom", ["base", "middle"])
    cell, ended = schedule.in_turn(cells, Runner(), lambda: False)
    assert (cell.cell, ended.status) == ("last", "done")


def test_in_turn_waits_for_a_leased_cell_until_it_is_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "POLL", 0.01)
    run = Runner({"a": ["leased", "leased", "done"]})
    assert schedule.in_turn([Fake("a", tmp_path)], run, lambda: False)[1].status == "done"
    assert run.ran == ["a"] * 3
    run = Runner({"a": ["leased"]})
    assert schedule.in_turn([Fake("a", tmp_path)], run, lambda: len(run.ran) == 2)[1].status == "leased"
