"""Starts the process that mirrors a sweep to Weights & Biases, and never waits for it longer than it was told. Torch- and wandb-free."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

from harness.config import TrackerConfig

ROOT = Path(__file__).resolve().parents[1]
NOT_INHERITED = (
    "WANDB_SERVICE", "WANDB_RUN_ID", "WANDB_RUN_GROUP", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_NAME",
    "WANDB_NOTES", "WANDB_TAGS", "WANDB_JOB_TYPE", "WANDB_MODE", "WANDB_DISABLED", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR",
)  # fmt: skip
"""Variables of a W&B run around this sweep: the mirror's runs are its own."""


@contextmanager
def started(tracker: TrackerConfig, store: Path | str, sweep: str) -> Iterator[None]:
    """Mirror the sweep while the block runs; afterwards wait at most `tracker.timeout` seconds for the rest.

    Whatever happens to W&B, the block is not disturbed; one line on standard error says that something was not sent, and why.
    """
    if tracker.kind == "none":
        yield
        return
    try:
        follower = Follower(tracker, store, sweep)
    except OSError as error:
        warn(f"its process did not start ({error.strerror})", sweep)
        yield
        return
    try:
        yield
    finally:
        follower.finish()


def warn(reason: str, sweep: str) -> None:
    """The one line."""
    rest = f"the results are in the store and the sweep goes on; parebench-sweep sync {sweep} sends what is missing"
    sys.stderr.write(f"parebench: warning: W&B: {reason}; {rest}\n")


class Follower:
    """The mirror's process: it ends when its standard input does, so also when this process is killed."""

    def __init__(self, tracker: TrackerConfig, store: Path | str, sweep: str) -> None:
        self.timeout, self.sweep, self.warned = tracker.timeout, sweep, False
        pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": DEVNULL, "text": True}
        self.process = Popen(_command(tracker, Path(store), sweep), env=_environment(), start_new_session=True, **pipes)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def finish(self) -> None:
        """Ask it to send the rest and end; end it where that takes too long."""
        try:
            self.process.stdin.close()
            code = self.process.wait(self.timeout)
            self.reader.join(1.0)
            if code:
                self._warn("it does not have every cell")
        except TimeoutExpired:
            self._warn(f"it did not take everything within tracker.timeout={self.timeout:g} s")
        finally:
            self._kill()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._warn(line.strip())

    def _warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            warn(reason, self.sweep)

    def _kill(self) -> None:
        """End it, if it has not ended, with the service that wandb started for it: both are of its own session."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _command(tracker: TrackerConfig, store: Path, sweep: str) -> list[str]:
    entity = ["--entity", tracker.entity] if tracker.entity else []
    return [
        sys.executable, "-m", "harness.sync", "--follow", "--store", str(store.absolute()), "--sweep", sweep, "--kind", tracker.kind,
        "--project", tracker.project, *entity, "--folder", str(Path(tracker.folder).absolute()), "--timeout", str(tracker.timeout),
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {key: value for key, value in os.environ.items() if key not in NOT_INHERITED} | {"PYTHONPATH": path}
