"""What is read of the kernel's memory files: control groups of both versions, in and out of containers."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from harness import memory

KILLED = "low 0\nmax 9\noom 4\noom_kill {}\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V1_MOUNTS = [("{}/cpu", "/", "cgroup", "rw,cpu"), ("{}/memory", "{root}", "cgroup", "rw,memory"), ("{}/unified", "/", "cgroup2", "rw")]
V2_MOUNTS = [("{}", "{root}", "cgroup2", "rw,nsdelegate")]
V1_GROUPS = "5:devices:/elsewhere\n4:memory,hugetlb:{}\n1:name=systemd:/elsewhere\n0::/elsewhere\n"
V2_GROUPS = "0::{}\n"
TREES = {
    "version 2": (V2_MOUNTS, V2_GROUPS, "/", "/user/job", {"user/job/memory.events": KILLED.format(3)}, 3),
    "version 2, container": (V2_MOUNTS, V2_GROUPS, "/", "/", {"memory.events": KILLED.format(5)}, 5),
    "version 2, host's path unseen": (V2_MOUNTS, V2_GROUPS, "/", "/docker/abc", {"memory.events": KILLED.format(2)}, 2),
    "version 2, path above the root": (V2_MOUNTS, V2_GROUPS, "/", "/../other", {"memory.events": KILLED.format(6)}, 6),
    "version 2, part of the tree": (V2_MOUNTS, V2_GROUPS, "/docker/abc", "/docker/abc/x", {"x/memory.events": KILLED.format(4)}, 4),
    "version 2, a name that begins alike": (V2_MOUNTS, V2_GROUPS, "/docker/ab", "/docker/abc", {"memory.events": KILLED.format(4)}, 4),
    "version 2, top of the machine": (V2_MOUNTS, V2_GROUPS, "/", "/", {}, 77),
    "version 1": (V1_MOUNTS, V1_GROUPS, "/", "/job", {"memory/job/memory.oom_control": CONTROL.format(8)}, 8),
    "version 1, container": (V1_MOUNTS, V1_GROUPS, "/docker/abc", "/docker/abc", {"memory/memory.oom_control": CONTROL.format(1)}, 1),
    "version 1, old kernel": (V1_MOUNTS, V1_GROUPS, "/", "/", {"memory/memory.oom_control": "oom_kill_disable 0\n"}, 77),
}


def _tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list, groups: str, root: str, path: str, files: dict) -> Path:
    """A /proc and a mounted tree of control groups; the tree's folder."""
    tree, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    lines = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]
    for point, of, kind, options in mounts:
        folder = Path(point.format(tree))
        folder.mkdir(parents=True, exist_ok=True)
        lines.append(f"31 23 0:28 {of.format(root=root)} {folder} rw,relatime shared:9 - {kind} cgroup {options}")
    (proc / "self" / "mountinfo").write_text("\n".join(lines))
    (proc / "self" / "cgroup").write_text(groups.format(path))
    (proc / "vmstat").write_text("pgfault 12\noom_kill 77\n")
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    monkeypatch.setattr(memory, "PROC", proc)
    return tree


@pytest.mark.parametrize(("mounts", "groups", "root", "path", "files", "kills"), TREES.values(), ids=TREES.keys())
def test_the_kernels_kills_are_those_of_the_own_group(
    mounts: list, groups: str, root: str, path: str, files: dict, kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tree(tmp_path, monkeypatch, mounts, groups, root, path, files)
    assert memory.kills() == kills


def test_without_any_counter_there_are_no_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.kills() == 0
    assert memory.ceiling() == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("mounts", "groups", "files", "bound"),
    [
        (V2_MOUNTS, V2_GROUPS, {"a/b/memory.max": "max\n", "a/memory.max": "4096\n", "memory.max": "8192\n"}, 4096),
        (V2_MOUNTS, V2_GROUPS, {"a/b/memory.max": "max\n"}, None),
        (V1_MOUNTS, V1_GROUPS, {"memory/a/b/memory.limit_in_bytes": "12288\n", "memory/memory.limit_in_bytes": f"{1 << 60}\n"}, 12288),
        (V1_MOUNTS, V1_GROUPS, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_the_ceiling_is_the_lowest_bound_above(
    mounts: list, groups: str, files: dict, bound: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None = no group is bounded: the machine's own memory."""
    _tree(tmp_path, monkeypatch, mounts, groups, "/", "/a/b", files)
    assert memory.ceiling() == (bound or psutil.virtual_memory().total)


GROWTH = """
import mmap, sys
from pathlib import Path
from harness import memory
path, size = Path(sys.argv[1]), int(sys.argv[2])
before = memory.resident()
with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as pages:
    assert pages.find(b"x") == -1  # touches every page
    print(memory.resident() - before)
for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
    with mmap.mmap(-1, size, flags=flags | mmap.MAP_ANONYMOUS) as pages:
        pages.write(b"x" * size)
        print(memory.resident() - before)
"""


@pytest.mark.skipif(not memory.sizes(), reason="this kernel has no /proc/<pid>/status")
def test_resident_counts_own_and_shared_pages_but_not_those_of_a_file(tmp_path: Path) -> None:
    """In a process of its own: a heap with room inside grows by nothing."""
    size = 32 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "file"), str(size)]
    of_file, shared, own = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert of_file < size // 4
    assert size <= shared < size * 5 // 4
    assert size <= own < size * 5 // 4


def test_resident_of_an_ended_process_is_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert memory.resident(process.pid) == 0  # a zombie
    process.wait()
    assert memory.resident(process.pid) == 0
    assert memory.proportional(process.pid) is None
