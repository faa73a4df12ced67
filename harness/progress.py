"""How far a running cell is, from its `progress.json` and the tail of its learning curve. Torch-free."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 8192
"""Bytes read from the end of history.jsonl: some twenty lines."""


@dataclass(frozen=True)
class Progress:
    """A running phase."""

    phase: str
    step: int
    """Optimizer steps done."""
    steps: int
    loss: float | None = None
    speed: float | None = None
    """Per second, between the last two points of the learning curve."""
    unit: str = "examples"
    """Of `speed`: `examples`, or `tokens` where the phase counts no examples."""
    eta: float | None = None
    """Seconds to the end of the phase at its mean speed so far."""

    @property
    def where(self) -> str:
        """`main 120/600`."""
        return f"{self.phase} {self.step}/{self.steps}" if self.steps else self.phase


def read(folder: Path) -> Progress | None:
    """The progress of the cell in `folder`; None before its first phase begins."""
    note = _note(folder / "progress.json")
    if note is None:
        return None
    phase, step, steps = note
    points = [line for line in tail(folder / "history.jsonl") if line.get("phase") == phase and "seconds" in line]
    if not points:
        return Progress(phase, step, steps)
    last = points[-1]
    step = max(step, last["step"])
    speed, unit = _speed(points)
    eta = (steps - step) * last["seconds"] / last["step"] if last["step"] and last["seconds"] else None
    return Progress(phase, step, steps, last.get("loss"), speed, unit, eta)


def tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a JSONL file, oldest first; torn ones and a missing file give none."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return [line for raw in lines[bool(start) :] if isinstance(line := _parsed(raw), dict)]


def _note(path: Path) -> tuple[str, int, int] | None:
    try:
        note = json.loads(path.read_bytes())
        return str(note["phase"]), int(note["step"] or 0), int(note["steps"] or 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _speed(points: list[dict[str, Any]]) -> tuple[float | None, str]:
    """Over the last two points; over the whole phase where there is one only, or where a resume lies between them."""
    last, before = points[-1], points[-2] if len(points) > 1 else {}
    if last["seconds"] <= before.get("seconds", 0) or last["step"] <= before.get("step", 0):
        before = {}
    unit = "examples" if last.get("examples") else "tokens"
    seconds = last["seconds"] - before.get("seconds", 0)
    count = last.get(unit, 0) - before.get(unit, 0)
    return (count / seconds, unit) if seconds > 0 and count > 0 else (None, unit)
