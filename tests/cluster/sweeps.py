"""Real sweeps in processes of their own, with the launchers' packages on their path."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke", "precision=float32", "run.device=cpu", "run.offline=true"]


class Sweeps:
    """Starts `parebench` with tiny cells in a folder."""

    def __init__(self, folder: Path, assets: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.common = [*TINY, f"run.assets={assets}"]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A running `parebench` with these arguments."""
        path = [str(ROOT), str(ROOT / "harness" / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"} | self.environment
        command = [sys.executable, "-c", "from harness.cli import main; main()", *self.common, *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)

    def run(self, *arguments: str, seconds: float = 480) -> tuple[int, str]:
        """Exit code and output of `parebench` with these arguments."""
        return ended(self.start(*arguments), seconds)


def ended(process: subprocess.Popen[str], seconds: float = 480) -> tuple[int, str]:
    """Exit code and output of a process that must end by itself in time; it is killed where it does not."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, output


def history(store: Path) -> list[dict[str, float]]:
    """The learning curve of the first cell of a store that has one, without a torn last line; empty where none has."""
    for file in sorted(store.glob("*/history.jsonl")):
        return [json.loads(line) for line in file.read_text().rpartition("\n")[0].splitlines()]
    return []


def needs(package: str) -> None:
    """Skip without a package of `launchers.lock`."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make test-cluster installs launchers.lock)")
