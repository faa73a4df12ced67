"""What the kernel says about memory: of a process, of this control group, of the machine. Torch-free; all sizes in bytes."""

import os
from pathlib import Path, PurePosixPath

import psutil

PROC = Path("/proc")
COUNTERS = ("memory.events", "memory.oom_control")
"""Files with the line `oom_kill <times>`: of a control group of version 2, and of version 1."""
BOUNDS = ("memory.max", "memory.limit_in_bytes")


def sizes(pid: int | str = "self") -> dict[str, int]:
    """`VmData`, `RssAnon`, ... of a process by name; empty once it has ended, and where the kernel is not Linux."""
    return _sizes(PROC / str(pid) / "status")


def resident(pid: int | str = "self") -> int:
    """What a process holds in memory that the kernel cannot take back: anonymous and shared pages. 0 once it has ended.

    Pages of mapped files (libraries, weights) are left out: the kernel drops them before it kills anybody.
    """
    found = sizes(pid)
    if "RssAnon" in found:
        return found["RssAnon"] + found["RssShmem"]
    try:
        return psutil.Process(os.getpid() if pid == "self" else int(pid)).memory_info().rss
    except psutil.Error:
        return 0


def proportional(pid: int) -> int | None:
    """Like `resident`, but pages that n processes share count 1/n; slow (milliseconds per GB). None where it is not told."""
    found = _sizes(PROC / str(pid) / "smaps_rollup")
    return found["Pss_Anon"] + found["Pss_Shmem"] if "Pss_Anon" in found else None


def kills() -> int:
    """How often the kernel has killed a process for memory: of this control group where it counts, else of the machine."""
    group = _group()
    counters = [group[0] / name for name in COUNTERS] if group else []
    for path in (*counters, PROC / "vmstat"):
        counts = [line.split()[1] for line in _read(path).splitlines() if line.startswith("oom_kill ")]
        if counts:
            return int(counts[0])
    return 0


def ceiling() -> int:
    """Memory that a process could ever have here: the machine's, or less where a control group above it is bounded."""
    bounds = [psutil.virtual_memory().total]
    folder, mount = _group() or (None, None)
    while folder is not None:
        bounds += [int(text) for text in (_read(folder / name).strip() for name in BOUNDS) if text.isdecimal()]
        folder = None if folder == mount else folder.parent
    return min(bounds)


def _group() -> tuple[Path, Path] | None:
    """Folder of the control group that charges this process's memory, and the mount it lies under; None without one.

    A container may see only a part of the tree (the mount's root), or paths of a tree that it does not see at all; its own
    group is then the mount point itself.
    """
    version, path = _membership()
    for line in _read(PROC / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(maxsplit=2)
        if kind == version and (kind == "cgroup2" or "memory" in options.split(",")):
            root, mount = before.split()[3:5]
            return _below(Path(mount), root, path), Path(mount)
    return None


def _membership() -> tuple[str, str]:
    """File system type (`cgroup` = version 1, `cgroup2`) and path of the group; version 1 first, since memory is in one only."""
    path = "/"
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, found = line.split(":", 2)
        if "memory" in controllers.split(","):
            return "cgroup", found
        path = path if controllers else found
    return "cgroup2", path


def _below(mount: Path, root: str, path: str) -> Path:
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(root):
        return mount
    folder = mount / group.relative_to(root)
    return folder if folder.is_dir() else mount


def _sizes(path: Path) -> dict[str, int]:
    lines = (line.split() for line in _read(path).splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(value) for name, value, _ in lines}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
