"""What one attempt at a cell makes of its folder, with a stand-in for the cell's processes."""

import errno
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness import dispatch, lease, limits, outcome, plan, sourcetexts, worker
from harness.cli import run
from harness.compose import compose
from harness.plan import Planned
from harness.record import NUMERICS, SCHEMA, Record
from harness.store import Store
from tests.contract.toy import write_toy_data

CELL = ["method=lora", "model=tiny_bert", "task=glue/sst2", "budget=smoke", "run.device=cpu", "run.memory_limit_gb=2"]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return compose([*CELL, f"data_dir={write_toy_data(tmp_path_factory.mktemp('data'))}"])


@pytest.fixture
def cell(container: dict, tmp_path: Path) -> Planned:
    return plan.check(OmegaConf.create(container | {"run": container["run"] | {"store": str(tmp_path / "runs")}}))


def write_record(cell: Planned, note: str = "") -> None:
    """A fresh record, as today's code would make it."""
    sources, attempts = cell.identity.sources, lease.count(cell.folder)
    made = Record(
        SCHEMA, cell.cell, "done", cell.identity.canonical, {}, None, 0, False, note, [], {}, {}, [], {}, {}, {"harness": NUMERICS},
        sources, 2.0, attempts,
    )  # fmt: skip
    cell.store.write(made)


def ends(monkeypatch: pytest.MonkeyPatch, *codes: int, record: bool = False, killed_for: str = "") -> list[int]:
    """Attempts end with these exit codes, the last one for ever; the numbers of the attempts that were made."""
    made: list[int] = []

    def processes(cell: Planned, held: lease.Lease, *rest: object) -> limits.Ending:
        made.append(held.number)
        if record:
            write_record(cell)
        code = codes[min(len(made), len(codes)) - 1]
        return limits.Ending(code, killed_for, 3 * 10**9, 3 * 10**9, 2 * 10**9, 0, 1.0)

    monkeypatch.setattr(dispatch, "_processes", processes)
    return made


def test_a_record_is_the_end_whatever_hits_the_process_after_it(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ends(monkeypatch, -signal.SIGKILL, record=True)
    assert dispatch.run(cell).status == "done"
    assert made == [1]
    assert outcome.read(cell.folder) is None
    assert dispatch.run(cell).status == "done"
    assert made == [1]


def test_an_interrupted_attempt_is_made_again_three_times(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ends(monkeypatch, worker.INTERRUPTED)
    assert dispatch.run(cell).status == "interrupted"
    assert made == [1, 2, 3, 4]
    assert [lease.ending(cell.folder, number)["status"] for number in made] == ["interrupted"] * 4


WHY = {
    "time": (-signal.SIGKILL, "time", "timeout", "over its time limit, run.time_limit_minutes=1"),
    "memory": (-signal.SIGKILL, "memory", "oom", "held 3.00 GB, over its limit, run.memory_limit_gb=2"),
    "the kernel": (-signal.SIGKILL, "", "oom", "killed for memory: it held 3.00 GB of 2.00 GB"),
    "a crash": (-signal.SIGSEGV, "", "error", "ended by SIGSEGV"),
}


@pytest.mark.parametrize(("code", "killed_for", "status", "line"), WHY.values(), ids=WHY.keys())
def test_what_a_killed_process_could_not_say(
    code: int, killed_for: str, status: str, line: str, cell: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.resolved.run.time_limit_minutes = 1.0
    ends(monkeypatch, code, killed_for=killed_for)
    ended = dispatch.run(cell)
    assert (ended.status, ended.last_line) == (status, line)
    assert outcome.read(cell.folder).last_line == line


def test_a_full_disk_under_the_dispatcher_fails_the_cell_alone(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lease, "take", full)
    ended = dispatch.run(cell)
    assert (ended.status, ended.last_line) == ("disk_full", f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}")


def test_a_damaged_record_is_kept_aside_as_it_was(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lease.take(cell.folder, None)
    write_record(cell, "the old one")
    held.end({"status": "done"})
    (cell.folder / "record.json").write_text("{")
    made = ends(monkeypatch, worker.DONE, record=True)
    assert dispatch.run(cell).status == "done"
    assert made == [1]
    aside = cell.store.root / ".replaced" / f"{cell.cell}-1"
    assert (aside / "record.json").read_text() == "{"
    assert sorted(path.name for path in (aside / "attempts").iterdir()) == ["1.end.json", "1.json"]
    assert cell.store.record(cell.cell).attempts == 1


def test_who_comes_second_moves_nobodys_new_folder(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sweep takes the cell in the moment in which its old folder has been moved aside."""
    write_record(cell)
    (cell.folder / "record.json").write_text("{")
    made = ends(monkeypatch, worker.DONE, record=True)
    real = Store.set_aside

    def moved(store: Store, name: str) -> Path | None:
        aside = real(store, name)
        lease.take(store.folder(name), "the other sweep")
        return aside

    monkeypatch.setattr(Store, "set_aside", moved)
    assert dispatch.run(cell).status == "leased"
    assert made == []
    assert lease.holder(cell.folder).sweep == "the other sweep"
    assert len(list((cell.store.root / ".replaced").iterdir())) == 1


def test_a_single_command_waits_for_whoever_still_runs_its_cell(cell: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    """As after a kill of its dispatcher, while the cell's process saves."""
    held = lease.take(cell.folder, "another")
    write_record(cell)
    threading.Timer(1.0, held.end, [{"status": "done"}]).start()
    assert run([*CELL, f"data_dir={cell.container['data_dir']}", f"run.store={cell.store.root}"]) == 0
    assert f"cell {cell.cell}  lora tiny_bert glue/sst2 seed 0: done" in capsys.readouterr().out


def test_an_attempt_is_about_the_sources_of_its_moment_not_of_the_plan(cell: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, worker.ERROR)
    planned = replace(cell, identity=replace(cell.identity, sources={"methods/adapters/lora.py": "of the plan"}))
    now = sourcetexts.sources("lora")
    assert dispatch.run(planned).sources == now
    assert json.loads((cell.folder / "made_by.json").read_text())["sources"] == now


def test_a_source_that_is_edited_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "methods" / "some.py"
    file.parent.mkdir()
    file.write_text("x = 1\n")
    monkeypatch.setattr(sourcetexts, "ROOT", tmp_path)
    monkeypatch.setattr(sourcetexts, "load_spec", lambda slug: type("Spec", (), {"path": file}))
    (before,) = sourcetexts.sources("some").values()
    file.write_text("x = 23\n")
    (after,) = sourcetexts.sources("some").values()
    assert before != after
