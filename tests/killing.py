"""Sweeps that are killed at random moments, and what must survive: shared by the short test and the long bench."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import lease
from harness.store import Store

ROOT = Path(__file__).resolve().parents[1]
TIMED = ("seconds", "peak_rss", "peak_device")
"""What may be otherwise after an interruption."""
STAGES = ("any", "training", "evaluation", "seal", "idle")
"""Where kills are aimed at in turn; `idle`: the dispatcher plans, or is between two cells."""
PATIENCE = 60.0
"""Seconds that a kill waits for its stage; then it lands where the sweep is."""
EVERY = 10
"""Steps between two entries of a learning curve in these sweeps; a cell that saves because it was asked to adds one more."""


def command(store: Path, *overrides: str, many: bool = True) -> list[str]:
    """`parebench -m` (without `-m` for a single cell) on the CPU with one thread per cell, from this source tree."""
    fixed = [f"run.store={store}", "run.device=cpu", "run.threads=1", "run.offline=true", "precision=float32"]
    return [sys.executable, "-m", "harness.cli", *(["-m"] if many else []), *fixed, *overrides]


def start(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that nobody else hears the signals it gets; `log` gets what it prints."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "harness" / "plugins")])
    with log.open("ab") as out:
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.Popen(argv, cwd=ROOT, env=environment, start_new_session=True, stdout=out, stderr=subprocess.STDOUT)


def kept(store: Store) -> dict[str, dict[str, Any]]:
    """Of every record and its learning curve, all that an interruption may not change."""
    found: dict[str, dict[str, Any]] = {}
    for record in store.records():
        assert store.damage(record) is None
        history = store.folder(record.cell) / "history.jsonl"
        curve = history.read_text().splitlines() if history.exists() else []  # a method without optimizer steps has none
        found[record.cell] = {
            "identity": record.identity, "seed": record.seed, "selection": record.selection, "measures": record.measures,
            "data": record.data, "sources": record.sources, "origins": record.origins,
            "costs": {key: value for key, value in record.costs.items() if key not in ("latency", "memory")},
            "results": [_untimed(asdict(result)) for result in record.results],
            "phases": [_untimed(asdict(phase)) for phase in record.phases],
            "predictions": {name: content for name, content in record.files.items() if name.endswith(".parquet")},
            "curve": [_of_step(json.loads(line)) for line in curve if json.loads(line)["step"] % EVERY == 0],
        }  # fmt: skip
    return found


def done(store: Store) -> dict[str, tuple[int, int]]:
    """Cell id -> time of its record and number of its newest attempt: neither may change once a cell is done."""
    folders = [path.parent for path in store.root.glob("*/record.json")]
    return {folder.name: ((folder / "record.json").stat().st_mtime_ns, lease.latest(folder)) for folder in folders}


def ran_again(store: Store) -> list[str]:
    """Cells with an attempt after the one that made their record."""
    return [record.cell for record in store.records() if lease.latest(store.folder(record.cell)) != record.attempts]


@dataclass
class Fire:
    """A sweep under fire: kills it, starts it again, and keeps account."""

    argv: Sequence[str]
    store: Store
    draws: random.Random
    landed: Counter[str] = field(default_factory=Counter)
    """Kills by `victim stage`."""
    finished: dict[str, tuple[int, int]] = field(default_factory=dict)
    """`done` as it was first seen after a kill."""
    starts: int = 0

    def run(self, kills: int) -> int:
        """Kill so many times, then let the sweep end; its last exit code."""
        process = self._start()
        for number in range(kills):
            while not self._shoot(process, STAGES[number % len(STAGES)]):
                if process.wait() == 0:
                    raise RuntimeError(f"the sweep was over after {number} kills; give its cells more steps")
                process = self._start()
            self.finished = done(self.store) | self.finished
        if process.wait():  # its last kill was the dispatcher, or a cell was hit more often than one sweep tries again
            process = self._start()
        return process.wait()

    def changed(self) -> list[str]:
        """Finished cells whose record or attempts are not what they were after a kill."""
        now = done(self.store)
        return [cell for cell, mark in self.finished.items() if now.get(cell) != mark]

    @property
    def log(self) -> Path:
        """What all its starts printed."""
        return self.store.root.with_suffix(".log")

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        return start(self.argv, self.log)

    def _shoot(self, sweep: subprocess.Popen[bytes], stage: str) -> bool:
        """Wait for the stage, then a little more, and kill the dispatcher or a cell's process; False if the sweep has ended."""
        self._aim(sweep, stage)
        found = stages(self.store)
        targets = [pid for pid, now in found.items() if now == stage] or list(found)
        worker = self.draws.choice(targets) if targets and self.draws.random() < 0.5 else None
        if sweep.poll() is not None:
            return False
        where = found[worker] if worker else "+".join(sorted(set(found.values()))) or "idle"
        with suppress(ProcessLookupError):
            os.kill(worker or sweep.pid, signal.SIGKILL)
        if worker is None:
            sweep.wait()
        self.landed[f"{'worker' if worker else 'dispatcher'} {where}"] += 1
        return True

    def _aim(self, sweep: subprocess.Popen[bytes], stage: str) -> None:
        deadline = time.monotonic() + (PATIENCE if stage != "idle" else 1.0)
        if stage in ("any", "idle"):
            time.sleep(self.draws.uniform(0.0, 15.0 if stage == "any" else 3.0))
        while sweep.poll() is None and stage != "any" and time.monotonic() < deadline:
            found = stages(self.store)
            if stage in found.values() or (stage == "idle" and not found):
                break
            time.sleep(0.005)
        time.sleep(self.draws.uniform(0.0, 0.3))


def stages(store: Store) -> dict[int, str]:
    """What every living process of a cell is at."""
    found: dict[int, str] = {}
    for path in store.root.glob("*/attempts"):
        number = lease.latest(path.parent)
        pid = _worker(path, number)
        if pid is not None and lease.ending(path.parent, number) is None:
            found[pid] = _stage(path.parent)
    return found


def _worker(attempts: Path, number: int) -> int | None:
    try:
        worker = json.loads((attempts / f"{number}.worker.json").read_text())
    except FileNotFoundError:
        return None
    return worker["pid"] if lease.started(worker["pid"]) == worker["start"] else None


def _stage(folder: Path) -> str:
    if (folder / "record.json").exists():
        return "end"
    if (folder / "unsealed.json").exists():
        return "seal"
    if (folder / "checkpoints" / "main" / "final").exists():
        return "evaluation"
    return "training" if any((folder / "checkpoints").glob("*/checkpoint-*")) else "start"


def _of_step(entry: dict[str, Any]) -> dict[str, Any]:
    """Without the loss, which is a mean since the entry before."""
    return {key: value for key, value in _untimed(entry).items() if key != "loss"}


def _untimed(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in TIMED}
