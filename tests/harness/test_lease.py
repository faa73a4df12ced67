"""Who owns a cell: one attempt at a time, dead ones are taken over, the highest number writes."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from harness import lease


def other_process(tmp_path: Path) -> subprocess.Popen[str]:
    """A living process that does nothing."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)


def written_by(folder: Path, number: int, **changes: object) -> None:
    """A lease of somebody else."""
    values = asdict(lease.Lease(folder, number, "elsewhere", lease.machine(), 1, "0", 0.0, None)) | changes
    (folder / "attempts").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in values.items() if key not in ("folder", "number")}
    (folder / "attempts" / f"{number}.json").write_text(json.dumps(kept))


def test_one_attempt_at_a_time(tmp_path: Path) -> None:
    first = lease.take(tmp_path, "s")
    assert (first.number, first.pid, first.sweep) == (1, os.getpid(), "s")
    assert lease.take(tmp_path, "s") is None
    assert lease.holder(tmp_path) == first == lease.read(tmp_path, 1)
    first.end({"status": "interrupted"})
    assert lease.holder(tmp_path) is None
    assert lease.ending(tmp_path, 1) == {"status": "interrupted"}
    assert lease.take(tmp_path, None).number == 2 == lease.count(tmp_path)
    assert lease.owns(tmp_path, 2) and not lease.owns(tmp_path, 1)


def test_a_dead_process_is_taken_over_and_a_living_one_not(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    written_by(tmp_path, 1, pid=process.pid, start=lease.started(process.pid))
    assert lease.take(tmp_path, None) is None
    process.kill()
    process.wait()
    assert lease.take(tmp_path, None).number == 2


def test_a_process_id_that_was_used_again_is_another_process(tmp_path: Path) -> None:
    written_by(tmp_path, 1, pid=os.getpid(), start="1")
    assert lease.take(tmp_path, None).number == 2


def test_an_orphan_keeps_its_cell_while_it_saves(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    written_by(tmp_path, 1, pid=2**22 - 1, start="7")
    worker = {"pid": process.pid, "start": lease.started(process.pid)}
    (tmp_path / "attempts" / "1.worker.json").write_text(json.dumps(worker))
    assert lease.take(tmp_path, None) is None
    process.kill()
    process.wait()
    assert lease.take(tmp_path, None).number == 2


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    process = other_process(tmp_path)
    assert lease.started(process.pid) is not None
    process.kill()
    while Path(f"/proc/{process.pid}/stat").exists() and " Z " not in Path(f"/proc/{process.pid}/stat").read_text():
        time.sleep(0.01)
    assert lease.started(process.pid) is None
    process.wait()


@pytest.mark.parametrize(("age", "free"), [(lease.PATIENCE - 30, False), (lease.PATIENCE + 30, True)])
def test_another_machine_lives_by_its_heartbeat(tmp_path: Path, age: float, free: bool) -> None:
    written_by(tmp_path, 1, machine="another boot")
    path = tmp_path / "attempts" / "1.json"
    os.utime(path, (time.time() - age,) * 2)
    assert (lease.take(tmp_path, None) is not None) == free


def test_a_heartbeat_makes_a_lease_young(tmp_path: Path) -> None:
    held = lease.take(tmp_path, None)
    path = tmp_path / "attempts" / "1.json"
    os.utime(path, (0, 0))
    lease.beat(held)
    assert abs(path.stat().st_mtime - time.time()) < 60


def test_of_many_that_ask_at_once_one_gets_it(tmp_path: Path) -> None:
    for round_ in range(20):
        folder, won, barrier = tmp_path / str(round_), [], threading.Barrier(8)

        def ask(folder: Path = folder, won: list = won, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            won.append(lease.take(folder, None))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(held is not None for held in won) == 1
        assert lease.count(folder) == 1


def _register(folder: Path, number: int) -> None:
    lease.register(folder, number)


def test_a_process_registers_itself(tmp_path: Path) -> None:
    written_by(tmp_path, 3)
    process = multiprocessing.get_context("spawn").Process(target=_register, args=(tmp_path, 3))
    process.start()
    process.join()
    assert json.loads((tmp_path / "attempts" / "3.worker.json").read_text())["pid"] == process.pid
    assert lease.take(tmp_path, None).number == 4
