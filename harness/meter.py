"""Peak memory and seconds of a stretch of work."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import torch

_INTERVAL = 0.05
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_open: list["PeakMeter"] = []


def _high_water_mark() -> int:
    """The kernel's own peak of resident memory since the last reset, in bytes; 0 where there is none (not Linux)."""
    if not _STATUS.exists():
        return 0
    lines = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _reset_high_water_mark() -> bool:
    """Start the kernel's peak anew; False where the system does not allow it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _turn_over(device: torch.device) -> bool:
    """Give the peaks so far to every open meter, then start them anew, so that meters may nest."""
    rss = _high_water_mark()
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    for meter in _open:
        if meter.device == device:
            meter.peak_device = max(meter.peak_device, allocated)
        if meter.exact:
            meter._given = max(meter._given, rss)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return _reset_high_water_mark()


class PeakMeter:
    """Context manager; `seconds` runs while the block is open, `peak_rss` and `peak_device` (bytes) are final after it.

    Resident memory is the kernel's own high-water mark where that can be reset (`exact` is True); otherwise the largest of
    samples taken every 50 ms. Device memory is what PyTorch's allocator handed out (0 without an accelerator). Meters may nest
    within one thread.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.cuda.init()  # its peaks cannot be reset before
        self.peak_device = 0
        self._sampled = self._given = 0  # apart, since the watcher writes one and the block's thread the other
        self.exact = False
        self._started: float | None = None
        self._ended: float | None = None
        self._process = psutil.Process()
        self._stop = threading.Event()

    @property
    def peak_rss(self) -> int:
        """Largest resident memory so far, bytes."""
        return max(self._sampled, self._given)

    @property
    def seconds(self) -> float:
        """Wall time of the block so far."""
        if self._started is None:
            return 0.0
        return (self._ended or time.perf_counter()) - self._started

    def __enter__(self) -> Self:
        self.exact = _turn_over(self.device)
        _open.append(self)
        self._sample()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended = time.perf_counter()
        self._stop.set()
        self._watcher.join()
        self._sample()
        _turn_over(self.device)
        _open.remove(self)
        for outer in _open:
            outer._given = max(outer._given, self.peak_rss)

    def _sample(self) -> None:
        self._sampled = max(self._sampled, self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._sample()
