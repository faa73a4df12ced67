"""Accelerators of this machine, handed out to cells. Torch-free."""

import os
import subprocess
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from methods.spec import UserError, number

DRIVER = Path("/proc/driver/nvidia/gpus")
"""One folder per device, where NVIDIA's driver is loaded."""
PATIENCE = 30.0
"""Seconds for `nvidia-smi`, which wakes every device; a broken one lets it hang for ever."""


def visible() -> list[str]:
    """Devices that this process may use, as CUDA_VISIBLE_DEVICES names them; like CUDA, blind after the first invalid name."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(index) for index in range(_count())]
    return list(dict.fromkeys(takewhile(_is_device, (name.strip() for name in given.split(",")))))


def check(gpus: int, devices: list[str]) -> None:
    """Refuse a cell that asks for more accelerators than there are, or for less than none."""
    number("run.gpus", gpus, 0)
    if gpus <= len(devices):
        return
    there = f"the {len(devices)} visible here ({', '.join(devices)})" if devices else "the 0 visible here"
    advice = f"give run.gpus={len(devices)} or less" if devices else "give run.device=cpu"
    raise UserError(f"run.gpus={gpus} is more than {there}; {advice}, or set CUDA_VISIBLE_DEVICES")


class Slots:
    """Devices that are handed out, the first ones first, and come back. Requests are served in the order they came.

    A request for few waits behind an earlier one for many, which would else never find enough free at once.
    """

    def __init__(self, devices: Iterable[str]) -> None:
        self._devices = list(devices)
        self._taken: set[str] = set()
        self._queue: deque[object] = deque()
        self._change = threading.Condition()

    @contextmanager
    def take(self, count: int) -> Iterator[list[str]]:
        """Wait for `count` devices and hold them inside the block. Raises UserError where there are never as many."""
        check(count, self._devices)
        ids = self._acquire(count) if count else []
        try:
            yield ids
        finally:
            with self._change:
                self._taken.difference_update(ids)
                self._change.notify_all()

    def _acquire(self, count: int) -> list[str]:
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            try:
                self._change.wait_for(lambda: self._queue[0] is ticket and len(self._free()) >= count)
                ids = self._free()[:count]
                self._taken.update(ids)
            finally:  # also where the wait is interrupted, or everybody behind it would wait for ever
                self._queue.remove(ticket)
                self._change.notify_all()
        return ids

    def _free(self) -> list[str]:
        return [device for device in self._devices if device not in self._taken]


def _is_device(name: str) -> bool:
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))


def _count() -> int:
    with suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        return sum(line.startswith("GPU ") for line in listing.splitlines())
    return len(list(DRIVER.iterdir())) if DRIVER.is_dir() else 0
