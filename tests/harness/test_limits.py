"""The bounds of a cell's process, on real processes of the forkserver."""

import errno
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pyarrow
import pytest
from pyarrow import parquet

from harness import dispatch
from harness.limits import Ending, Limits, disk_full, supervise
from harness.memory import ceiling

MB = 1 << 20
FREE = Limits(None, None)
HELPER = '''
"""What the tests run in a process."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from harness import dispatch, limits, memory

MB = 1 << 20
HOLD = "import sys, time; held = bytearray(int(sys.argv[1])); print(flush=True); time.sleep(600)"


def end(code):
    sys.exit(code)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def grow(most, cap):
    """Hold more and more; 5 = refused with a typed error, 9 = got all."""
    if cap:
        limits.cap_data(cap, cuda=False)
    held = []
    try:
        while len(held) * 8 * MB < most:
            held.append(b"x" * (8 * MB))
            time.sleep(0.01)
    except MemoryError:
        sys.exit(5)
    sys.exit(9)


def wait_for_term(ready, obey):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75) if obey else None)
    Path(ready).touch()
    while True:
        time.sleep(0.05)


def hold_in_child(ready, size):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(size)], stdout=subprocess.PIPE)
    child.stdout.readline()
    Path(ready + ".new").write_text(str(child.pid))
    Path(ready + ".new").rename(ready)
    time.sleep(600)


def share(ready, size, children):
    """Children that only read what they were forked with."""
    held = b"x" * size
    pids = []
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(600)
        pids.append(pid)

    def stop(*_):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        sys.exit(75 if held else 1)

    signal.signal(signal.SIGTERM, stop)
    Path(ready).touch()
    while True:
        time.sleep(0.05)


def count_blocks(path, room):
    """How many blocks of 8 MB fit under a cap with this room."""
    limits.cap_data(memory.resident() + room, cuda=False)
    held = []
    try:
        while len(held) < 1000:
            held.append(bytearray(8 * MB))
    except MemoryError:
        blocks = len(held)
        held.clear()
        Path(path).write_text(str(blocks))


def allocate_tensors(path, room):
    """Half of the room fits; twice the room is refused, in these words."""
    import torch

    limits.cap_data(memory.resident() + room, cuda=False)
    half = torch.zeros(room // 8)
    try:
        torch.zeros(room // 2)
    except RuntimeError as error:
        Path(path).write_text(f"{half.nbytes} {error}")


def caps(path, cap, before, cuda):
    """The answer of cap_data and the bound that is then in force, under an earlier soft bound."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
    answer = limits.cap_data(cap, cuda=cuda)
    Path(path).write_text(f"{answer} {resource.getrlimit(resource.RLIMIT_DATA)[0]}")
'''


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a module `in_process`."""
    (tmp_path / "in_process.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("in_process", None)
    return tmp_path


def _start(function: str, *arguments: object) -> BaseProcess:
    import in_process

    process = dispatch.server().Process(target=getattr(in_process, function), args=arguments)
    process.start()
    return process


def _wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path.name} did not appear")


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("function", "arguments", "code"), [("end", (0,), 0), ("end", (7,), 7), ("kill_itself", (), -signal.SIGKILL)])
def test_a_process_within_its_limits_ends_by_itself_and_is_not_waited_for(function: str, arguments: tuple, code: int, helper: Path) -> None:
    """With a sample only every two minutes, an end is noticed long before the next one."""
    ending = supervise(_start(function, *arguments), Limits(3600, 1 << 40), interval=120)
    assert (ending.code, ending.killed_for, ending.kernel_kills) == (code, "", 0)
    assert not ending.evidence()
    assert ending.seconds < 60


def test_an_ended_process_is_accounted_for(helper: Path) -> None:
    process = _start("end", 3)
    process.join()
    ending = supervise(process, Limits(0.0, 1))
    assert (ending.code, ending.peak_rss) == (3, 0)


def test_growing_over_the_memory_limit_is_killed_with_evidence(helper: Path) -> None:
    ending = supervise(_start("grow", 3000 * MB, None), Limits(None, 512 * MB))
    assert (ending.code, ending.killed_for, ending.bound) == (-signal.SIGKILL, "memory", 512 * MB)
    assert 512 * MB < ending.peak_rss < 3000 * MB
    assert ending.evidence()


def test_the_cap_speaks_before_the_watch_kills(helper: Path) -> None:
    """One limit for both: growing slowly ends in the typed error (5), not in a kill."""
    ending = supervise(_start("grow", 3000 * MB, 512 * MB), Limits(None, 512 * MB))
    assert (ending.code, ending.killed_for) == (5, "")


def test_a_child_counts_and_dies_with_its_parent(helper: Path) -> None:
    ready = helper / "ready"
    process = _start("hold_in_child", str(ready), 520 * MB)
    _wait_for(ready)
    child = int(ready.read_text())
    assert not _gone(child)
    ending = supervise(process, Limits(None, 500 * MB))
    assert (ending.code, ending.killed_for) == (-signal.SIGKILL, "memory")
    assert ending.peak_rss > 520 * MB
    for _ in range(1000):
        if _gone(child):
            break
        time.sleep(0.01)
    assert _gone(child)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="this kernel does not tell shared pages apart")
def test_pages_shared_with_forked_children_count_once(helper: Path) -> None:
    """150 MB held by a parent and 3 children are 150 MB under a limit of 550 MB, though they look like 600 MB without one."""
    for memory, least, most in ((None, 600 * MB, 3200 * MB), (550 * MB, 145 * MB, 550 * MB)):
        ready = helper / f"ready-{memory}"
        process = _start("share", str(ready), 150 * MB, 3)
        _wait_for(ready)
        ending = supervise(process, Limits(0.5, memory))
        assert (ending.code, ending.killed_for) == (75, "time")
        assert least <= ending.peak_rss <= most


@pytest.mark.parametrize(("obey", "code"), [(True, 75), (False, -signal.SIGKILL)])
def test_at_the_time_limit_a_process_is_asked_and_then_killed(obey: bool, code: int, helper: Path) -> None:
    ready = helper / "ready"
    process = _start("wait_for_term", str(ready), obey)
    _wait_for(ready)
    ending = supervise(process, Limits(0.1, None), grace=60.0 if obey else 0.3)
    assert (ending.code, ending.killed_for) == (code, "time")
    assert not ending.evidence()


def test_the_cap_leaves_the_room_that_it_names(helper: Path) -> None:
    assert supervise(_start("count_blocks", str(helper / "blocks"), 128 * MB), FREE).code == 0
    assert 128 // 8 - 4 <= int((helper / "blocks").read_text()) <= 128 // 8


def test_a_tensor_over_the_cap_is_refused_in_the_words_that_the_worker_knows(helper: Path) -> None:
    assert supervise(_start("allocate_tensors", str(helper / "words"), 128 * MB), FREE).code == 0
    held, _, words = (helper / "words").read_text().partition(" ")
    assert int(held) == 64 * MB
    assert "can't allocate memory" in words


@pytest.mark.parametrize(("cuda", "cap", "answer"), [(True, 0, "None"), (False, 1 << 41, str(1 << 40))])
def test_the_cap_never_widens_a_bound_and_is_not_for_cuda(cuda: bool, cap: int, answer: str, helper: Path) -> None:
    """Under an earlier bound of 1 TB, a cap of 2 TB leaves 1 TB, and with CUDA a cap of nothing at all does too."""
    assert supervise(_start("caps", str(helper / "caps"), cap, 1 << 40, cuda), FREE).code == 0
    assert (helper / "caps").read_text() == f"{answer} {1 << 40}"


@pytest.mark.parametrize(
    ("code", "killed_for", "last", "kernel", "evidence"),
    [
        (-9, "memory", 0, 0, True),
        (137, "memory", 0, 0, True),
        (-9, "", 0, 1, True),
        (-9, "", 901, 0, True),
        (-9, "", 900, 0, False),
        (-9, "time", 999, 1, False),
        (-9, "", 0, 0, False),
        (-15, "", 999, 1, False),
        (1, "", 999, 1, False),
        (0, "memory", 999, 0, False),
    ],
)
def test_a_kill_is_for_memory_only_on_evidence(code: int, killed_for: str, last: int, kernel: int, evidence: bool) -> None:
    assert Ending(code, killed_for, 999, last, 1000, kernel, 1.0).evidence() is evidence


def test_a_process_being_torn_down_does_not_wipe_out_what_it_held(helper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 MB at the first look and nothing at the later ones, killed by somebody, under a limit of 520 MB."""
    samples = iter([500 * MB])
    monkeypatch.setattr("harness.limits.memory.resident", lambda _: next(samples, 0))
    ending = supervise(_start("kill_itself"), Limits(None, 520 * MB), interval=0.01)
    assert (ending.killed_for, ending.last_rss) == ("", 500 * MB)
    assert ending.evidence()


def test_the_bound_without_a_limit_is_the_machine(helper: Path) -> None:
    for limits in (FREE, Limits(None, 1 << 50)):
        assert supervise(_start("end", 0), limits).bound == ceiling() <= psutil.virtual_memory().total


def _chained(first: BaseException, second: BaseException, cause: bool) -> BaseException:
    """`second`, raised from or while handling `first`."""
    if cause:
        second.__cause__ = first
    else:
        second.__context__ = first
    return second


FULL_DISK = {
    "disk": OSError(errno.ENOSPC, "x"),
    "quota": OSError(errno.EDQUOT, "x"),
    "cause": _chained(OSError(errno.ENOSPC, "x"), ValueError("could not save"), cause=True),
    "context, two deep": _chained(_chained(OSError(errno.EDQUOT, "x"), KeyError("a"), False), RuntimeError("b"), cause=False),
    "group": ExceptionGroup("two writers", [ValueError("a"), OSError(errno.ENOSPC, "x")]),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch.save": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
}
OTHER = {
    "rights": OSError(errno.EACCES, "Permission denied"),
    "memory": MemoryError(),
    "device memory": RuntimeError("CUDA out of memory"),
    "torch.load": RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
    "circle": _chained(ValueError("a"), ValueError("b"), cause=True),
}
OTHER["circle"].__cause__.__cause__ = OTHER["circle"]


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_full_disk_is_recognised(name: str) -> None:
    assert disk_full(FULL_DISK[name])


@pytest.mark.parametrize("name", OTHER)
def test_other_errors_are_not_a_full_disk(name: str) -> None:
    assert not disk_full(OTHER[name])


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="/dev/full is absent")
def test_real_writers_on_a_full_device_are_recognised() -> None:
    """Open files only: a library that writes beside its target and renames would replace the device."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        for write in (lambda: file.write(b"x"), lambda: parquet.write_table(pyarrow.table({"a": [1]}), file)):
            with pytest.raises(OSError) as caught:
                write()
            assert disk_full(caught.value)
