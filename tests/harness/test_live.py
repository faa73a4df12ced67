"""The live view: what it shows of running cells and how it counts; drawn into a recorded console of a known width."""

import io
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness import live
from harness.store import Store, write_json
from tests.harness import stores


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`a` is done, `b` trains, `c` has begun, `d` has not."""
    store = Store(tmp_path)
    store.write(stores.record("a"))
    folder = stores.begun(store, "b", ended=stores.OPEN)
    write_json(folder / "progress.json", {"phase": "main", "step": 120, "steps": 600})
    stores.history(folder, {"phase": "main", "step": 120, "examples": 3840, "seconds": 30.0, "loss": 0.4312})
    stores.begun(store, "c", ended=stores.OPEN)
    return store


CELLS = [SimpleNamespace(cell=name, label=f"lora {name}", overrides=["method=lora", f"method.r={n}"]) for n, name in enumerate("abcd")]


def outcome(cell: str, status: str) -> SimpleNamespace:
    """How a cell ended."""
    return SimpleNamespace(cell=cell, label=cell, status=status, seconds=9.6)


def test_running_cells_have_their_phase_loss_speed_and_eta(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.living(monkeypatch, b="s", c="s", a="s")
    console = Console(record=True, width=100, file=io.StringIO())
    view = live.View(CELLS, store, console)
    view.line(outcome("a", "done"))
    monkeypatch.setattr("time.monotonic", lambda: view.started + 60)
    console.export_text()
    console.print(view.render())
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert lines[0] == "1/4 cells, 1:00 so far, ETA 3:00"
    assert lines[1] == "running phase loss speed ETA"
    assert lines[2] == "lora b method.r=1 main 120/600 0.4312 128 examples/s 2:00"
    assert lines[3] == "lora c method.r=2 starting"
    assert len(lines) == 4  # neither the ended nor the one not begun


def test_no_eta_before_the_first_end_and_failures_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.living(monkeypatch)
    view = live.View(CELLS, store, Console(file=io.StringIO()))
    assert view.eta(60) is None
    view.line(outcome("a", "done"))
    view.line(outcome("b", "oom"))
    assert view.eta(60) == 60
    assert view.render().title.plain.startswith("2/4 cells, 1 oom, 0:0")
    view.line(outcome("c", "oom"))
    view.line(outcome("d", "error"))
    assert view.eta(60) == 0
    assert view.render().title.plain.startswith("4/4 cells, 2 oom, 1 error")


def test_plain_lines_where_the_output_is_no_terminal(store: Store) -> None:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    with live.view(CELLS, store, console) as view:
        view.line(outcome("a", "done"))
        view.line(outcome("b", "diverged"))
    assert console.file.getvalue() == (
        "[1/4] lora a method.r=0: done in 10 s  sst2@last 0.625\n[2/4] lora b method.r=1: diverged in 10 s\n"
    )  # fmt: skip


def test_on_a_terminal_the_lines_stay_and_the_table_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.living(monkeypatch, b="s")
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    with live.view(CELLS, store, console) as view:
        view.line(outcome("a", "done"))
    drawn = console.file.getvalue()
    assert "main 120/600" in drawn
    assert "[1/4] lora a method.r=0: done in 10 s  sst2@last 0.625" in drawn
    assert drawn.rstrip("\x1b[?25h\r\n").endswith("\x1b[2K")  # the table's rows are erased at the end


def test_many_threads_may_end_cells_while_the_table_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line once, counted in order; a lock taken in two orders would stop this for ever."""
    monkeypatch.setattr(live, "REFRESH", 200)
    cells = [SimpleNamespace(cell=f"c{n}", label=f"cell {n}", overrides=[]) for n in range(200)]
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)

    def end(view: live.View, mine: list[SimpleNamespace]) -> None:
        for cell in mine:
            view.line(outcome(cell.cell, "done"))

    with live.view(cells, Store(tmp_path), console) as view:
        threads = [threading.Thread(target=end, args=(view, cells[n::4]), daemon=True) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    printed = re.findall(r"\[(\d+)/200\] cell (\d+): done", console.file.getvalue())
    assert [int(n) for n, _ in printed] == list(range(1, 201))
    assert {int(cell) for _, cell in printed} == set(range(200))
