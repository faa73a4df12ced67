"""Who may write a cell: `attempts/<n>.json`, linked into place whole; the highest number owns the cell. Torch-free."""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from harness.store import write_json

BEAT = 30.0
"""Seconds between two signs of life of a lease."""
PATIENCE = 300.0
"""Seconds without a sign of life after which a lease of another machine is dead."""

_held: set["Lease"] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Lease:
    """One attempt at a cell and the dispatcher that makes it."""

    folder: Path
    number: int
    host: str
    machine: str
    """Boot and process namespace: within it a process id names one process."""
    pid: int
    start: str
    """When the process started, in the kernel's count: a process id alone is used again."""
    taken: float
    sweep: str | None

    def end(self, outcome: dict[str, Any]) -> None:
        """Say how the attempt ended; the lease is free from here on."""
        write_json(self.folder / "attempts" / f"{self.number}.end.json", outcome)
        with _lock:
            _held.discard(self)

    def drop(self, folder: Path) -> None:
        """Forget a lease that made no attempt; its cell's folder is `folder` now."""
        with _lock:
            _held.discard(self)
        (folder / "attempts" / f"{self.number}.json").unlink()


def take(folder: Path, sweep: str | None) -> Lease | None:
    """The next attempt at a cell; None while another one lives or if somebody else was faster."""
    attempts = folder / "attempts"
    attempts.mkdir(parents=True, exist_ok=True)
    number = latest(folder)
    if number and alive(folder, number):
        return None
    lease = Lease(folder, number + 1, socket.gethostname(), machine(), os.getpid(), started(os.getpid()) or "", time.time(), sweep)
    aside = attempts / f".{uuid.uuid4().hex}"
    write_json(aside, {key: value for key, value in asdict(lease).items() if key not in ("folder", "number")})
    try:
        os.link(aside, attempts / f"{lease.number}.json")  # fails for all but one; the content is whole already
    except FileExistsError:
        return None
    finally:
        aside.unlink()
    _keep_beating(lease)
    _await_predecessor(folder, number)
    return lease


def count(folder: Path) -> int:
    """Number of attempts so far."""
    return sum(path.stem.isdecimal() for path in (folder / "attempts").glob("*.json"))


def latest(folder: Path) -> int:
    """Number of the newest attempt; 0 before the first."""
    return max((int(path.stem) for path in (folder / "attempts").glob("*.json") if path.stem.isdecimal()), default=0)


def holder(folder: Path) -> Lease | None:
    """The living lease of a cell, None where nobody works on it."""
    number = latest(folder)
    return read(folder, number) if number and alive(folder, number) else None


def read(folder: Path, number: int) -> Lease:
    """One attempt's lease as it was taken; `ValueError` or `TypeError` where its file is damaged."""
    return Lease(folder, number, **json.loads((folder / "attempts" / f"{number}.json").read_text()))


def alive(folder: Path, number: int) -> bool:
    """Does the attempt still run? Its dispatcher, or an orphan of it that is saving."""
    if ending(folder, number) is not None:
        return False
    try:
        lease = read(folder, number)
    except (ValueError, TypeError):  # what a failing disk left of it belongs to nobody
        return False
    if lease.machine == machine():
        return started(lease.pid) == lease.start or _worker_lives(folder, number)
    beat = folder / "attempts" / f"{number}.json"
    return _file_clock(folder) - beat.stat().st_mtime < PATIENCE


def ending(folder: Path, number: int) -> dict[str, Any] | None:
    """What `Lease.end` wrote, None before."""
    path = folder / "attempts" / f"{number}.end.json"
    return json.loads(path.read_text()) if path.exists() else None


def register(folder: Path, number: int) -> None:
    """Called by a cell's process before anything else: it keeps the lease alive if its dispatcher dies."""
    write_json(folder / "attempts" / f"{number}.worker.json", {"pid": os.getpid(), "start": started(os.getpid())})


def owns(folder: Path, number: int) -> bool:
    """Is this attempt still the highest? One that slept through its own end (a suspended machine) is not."""
    return latest(folder) == number


@cache
def machine() -> str:
    """Names this boot of this machine and the namespace of its process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    name = boot.read_text().strip() if boot.exists() else f"{socket.gethostname()}-{psutil.boot_time():.0f}"
    return f"{name} {namespace.readlink()}" if namespace.exists() else name


def started(pid: int) -> str | None:
    """When a living process started, None if there is none (a zombie has ended)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    return str(psutil.Process(pid).create_time()) if psutil.pid_exists(pid) else None


def _worker_lives(folder: Path, number: int) -> bool:
    path = folder / "attempts" / f"{number}.worker.json"
    if not path.exists():
        return False
    worker = json.loads(path.read_text())
    return started(worker["pid"]) == worker["start"]


def _file_clock(folder: Path) -> float:
    """Now, by the clock that stamps the files of this folder (a file server's, perhaps)."""
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _keep_beating(lease: Lease) -> None:
    with _lock:
        _held.add(lease)
    _heart()


@cache
def _heart() -> None:
    threading.Thread(target=_beat_for_ever, daemon=True, name="heartbeat").start()


def _beat_for_ever() -> None:
    while True:
        time.sleep(BEAT)
        with _lock:
            held = list(_held)
        for lease in held:
            beat(lease)


def beat(lease: Lease) -> None:
    """One sign of life; a store that is gone for a moment is no reason to stop."""
    with suppress(OSError):
        os.utime(lease.folder / "attempts" / f"{lease.number}.json")


def _await_predecessor(folder: Path, number: int) -> None:
    """A process that registered while its dead dispatcher's lease was taken over sees the loss and ends itself."""
    while number and _worker_lives(folder, number):
        time.sleep(0.2)
