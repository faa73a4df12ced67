"""`parebench-sweep`: what each command prints, what `retry` launches, one sentence and exit code 2 for a mistake."""

import io
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from harness import cli
from harness.sweep_cli import run
from tests.harness import stores
from tests.harness.stores import Store

ROOT = Path(__file__).resolve().parents[2]
STATES = {"aa1": "oom", "ab2": "diverged", "b33": "oom", "1e5": "interrupted"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Sweep `s`: `d00` done, two oom, one diverged, one interrupted, `new` missing and one impossible."""
    stores.living(monkeypatch)
    monkeypatch.setattr("harness.stale.reasons", lambda record, store: [])
    store = Store(tmp_path / "runs")
    store.write(stores.record("d00"))
    for cell, status in STATES.items():
        stores.failed(store, cell, status)
    stores.manifest(store, "d00", *STATES, "new", " method=none", argv=("-m", "+sweeps=s", "run.store=elsewhere"))
    return store


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that `parebench` was given instead of being run."""
    lines: list[list[str]] = []
    monkeypatch.setattr(cli, "run", lambda argv: lines.append(list(argv)) or 0)
    return lines


def sweep(store: Store, *argv: str) -> int:
    """The command on this store."""
    return run([*argv, "--store", str(store.root)])


RETRIES = {
    "nothing named: all that failed": ((), set(STATES), "[diverged,oom]"),
    "a class": (("oom",), {"aa1", "b33"}, "[oom]"),
    "two classes": (("oom", "diverged"), {"aa1", "ab2", "b33"}, "[diverged,oom]"),
    "interrupted, which needs no leave": (("interrupted",), {"1e5"}, "[]"),
    "a cell": (("b",), {"b33"}, "[oom]"),
    "a class and a cell": (("diverged", "b33"), {"ab2", "b33"}, "[diverged,oom]"),
    "a cell not begun": (("new",), {"new"}, "[]"),
}


@pytest.mark.parametrize(("asked", "cells", "classes"), RETRIES.values(), ids=RETRIES.keys())
def test_retry_launches_the_sweep_for_exactly_the_cells_asked_for(
    asked: tuple[str, ...], cells: set[str], classes: str, store: Store, launched: list[list[str]]
) -> None:
    assert sweep(store, "retry", "s", *asked) == 0
    ((*argv, where, retry, only),) = launched
    assert argv == ["-m", "+sweeps=s"]
    assert (where, retry) == (f"run.store={store.root}", f"run.retry={classes}")
    ids = OverridesParser.create().parse_override(only).value()
    assert {str(cell) for cell in ids} == cells and len(ids) == len(cells)


def test_ids_that_look_like_numbers_stay_text(store: Store, launched: list[list[str]]) -> None:
    sweep(store, "retry", "s", "interrupted")
    (cell,) = OverridesParser.create().parse_override(launched[0][-1]).value()
    assert str(cell) == "1e5" and not isinstance(cell, float)


def test_a_cell_of_two_commands_is_retried_by_the_newer_and_the_worst_exit_code_counts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.manifest(store, "b33", argv=("-m", "newer", "run.only=[x]", "run.retry=[error]"), name="1", written=2.0)
    lines: list[list[str]] = []
    monkeypatch.setattr(cli, "run", lambda argv: lines.append(list(argv)) or int("newer" not in argv))
    assert sweep(store, "retry", "s", "oom") == 1
    assert [(line[1], line[-1]) for line in lines] == [("+sweeps=s", "run.only=['aa1']"), ("newer", "run.only=['b33']")]
    assert len(lines[1]) == 5


def test_a_store_with_signs_in_its_path_is_quoted(tmp_path: Path, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    stores.living(monkeypatch)
    store = Store(tmp_path / "a, 'b'=c")
    stores.failed(store, "aa1", "oom")
    stores.manifest(store, "aa1")
    sweep(store, "retry", "s")
    where = next(argument for argument in launched[0] if argument.startswith("run.store="))
    assert str(OverridesParser.create().parse_override(where).value()) == str(store.root)


def test_nothing_to_retry_is_no_mistake(store: Store, launched: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(store, "retry", "s", "disk_full") == 0
    assert capsys.readouterr().out == "s has no cell that is disk_full\n"
    assert launched == []


BAD = {
    "no such command": (("stauts",), "stauts"),
    "no such flag": (("status", "--al"), "--al"),
    "no such sweep": (("status", "x"), "sweep x is unknown"),
    "no such class": (("retry", "s", "omo"), "did you mean oom?"),
    "a finished cell": (("retry", "s", "d00"), "cell d00 is done and cannot be retried"),
    "an ambiguous cell to retry": (("retry", "s", "a"), "a begins the ids of aa1, ab2"),
    "no such cell": (("logs", "ff"), "begins with ff"),
    "an ambiguous cell": (("logs", "a"), "a begins the ids of aa1, ab2; give more of it"),
    "no log yet": (("logs", "aa"), "cell aa1 has no log yet"),
    "lines below zero": (("logs", "aa", "-n", "-3"), "-n -3 is not allowed"),
    "nothing to clean named": (("clean",), "or --all for the whole store"),
    "both to clean named": (("clean", "s", "--all"), "and not both"),
}


@pytest.mark.parametrize(("argv", "expected"), BAD.values(), ids=BAD.keys())
def test_a_mistake_is_one_sentence_and_exit_code_2(
    argv: tuple[str, ...], expected: str, store: Store, launched: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(store, *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and launched == []
    assert err.startswith("parebench-sweep: ") and err.count("\n") == 1
    assert expected in err


def test_status_prints_a_line_per_cell_and_totals(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(store, "status", "s") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cell", "d00", "aa1", "ab2", "b33", "1e5", "new", "label", "7"]
    assert lines[1].split() == ["d00", "label", "d00", "done", "10", "sst2@last", "0.625"]
    assert lines[2].split() == ["aa1", "label", "aa1", "oom", "7", "the", "last", "line"]
    assert lines[-1] == "7 cells: 1 done, 1 missing, 2 oom, 1 diverged, 1 interrupted, 1 skipped"


def test_status_of_failed_cells_only_and_as_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(store, "status", "s", "--failed", "--json")
    found = json.loads(capsys.readouterr().out)
    assert {cell["cell"]: cell["state"] for cell in found["cells"]} == STATES
    assert found["totals"] == {"done": 1, "missing": 1, "oom": 2, "diverged": 1, "interrupted": 1, "skipped": 1}


def test_status_of_a_store_counts_every_sweep_and_the_cells_of_none(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    stores.manifest(store, "d00", "later", sweep="t")
    store.write(stores.record("single"))
    sweep(store, "status", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "sweeps": {
            "s": {"done": 1, "missing": 1, "oom": 2, "diverged": 1, "interrupted": 1, "skipped": 1},
            "t": {"done": 1, "missing": 1},
            "(no sweep)": {"done": 1},
        }
    }


def test_a_store_without_sweeps_lists_its_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    store.write(stores.record("d00"))
    assert sweep(store, "status") == 0
    assert "lora tiny_bert demo/sst2 seed 0" in capsys.readouterr().out


def test_logs_end_with_the_lines_asked_for(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    (store.folder("aa1") / "log.txt").write_text("".join(f"line {n}\n" for n in range(100)))
    for arguments, first in (((), 60), (("-n", "3"), 97), (("-n", "0"), 0)):
        sweep(store, "logs", "aa", *arguments)
        assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(first, 100)]


def test_logs_follow_until_nobody_runs_the_cell(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    owners = stores.living(monkeypatch, aa1="s")
    log = store.folder("aa1") / "log.txt"
    log.write_text("first\n")

    def more() -> None:
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("second\n")
        owners.clear()

    writer = threading.Thread(target=more)
    writer.start()
    assert sweep(store, "logs", "aa1", "--follow") == 0
    writer.join()
    assert capsys.readouterr().out == "first\nsecond\n"


@pytest.mark.parametrize(("answer", "flags", "gone"), [("y\n", (), True), ("n\n", (), False), ("", (), False), ("", ("--yes",), True)])
def test_clean_shows_sizes_and_asks(
    answer: str, flags: tuple[str, ...], gone: bool, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.folder("d00") / "checkpoints").mkdir()
    (store.folder("d00") / "checkpoints" / "weights").write_bytes(b"x" * 2500)
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    before = store.record("d00")
    assert sweep(store, "clean", "s", *flags) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["checkpoints", "of", "finished", "cells", "1", "2.5", "KB"]
    assert ("remove 2.5 KB? [y/N]" in out) == (not flags)
    assert (store.folder("d00") / "checkpoints").exists() != gone
    assert store.record("d00") == before


def test_plan_checks_a_grid_with_the_sweeper_and_starts_nothing(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "plan",
        "model=tiny_bert",
        "method=lora,none",
        "budget=smoke",
        "seed=0,1",
        f"data_dir={shared_data}",
        f"run.assets={tmp_path / 'none'}",
    ]
    assert run(line) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 cells: 2 run, 2 skipped\n")
    assert "none works on decoder models and tiny_bert is of family encoder" in out
    assert "lora tiny_bert glue/sst2 seed 1" in out
    assert not (tmp_path / "runs").exists()
    assert run(["plan", "+sweeps=quickstrat"]) == 2


def test_help_is_one_screen_and_starts_without_the_configuration_libraries() -> None:
    code = "import sys; from harness.sweep_cli import run; run(['--help']); sys.exit(bool({'hydra', 'torch', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24 and max(map(len, done.stdout.splitlines())) <= 120
    for name in ("status", "retry", "logs", "clean", "plan", "sync"):
        assert f"\n  {name} " in done.stdout
