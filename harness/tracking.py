"""The one file that knows wandb. It is imported by the mirror's own process only: neither a cell nor the dispatcher imports wandb."""

import glob
import math
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from harness import trackkeys as keys
from harness.config import TrackerConfig
from harness.redact import redact
from harness.runview import Title

TRUSTED = 30.0
"""Seconds for which a server that has answered is taken to be there."""
FLUSH = 2.0
"""Seconds after which lines of an offline run are on disk (wandb's own default of 15 loses a killed run's)."""
QUIET = {
    "silent": True, "console": "off", "disable_git": True, "disable_code": True, "save_code": False, "symlink": False,
    "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False,
    "x_transaction_log_flush_interval": FLUSH, "finish_timeout_raises": True,
}  # fmt: skip
"""What wandb would note by itself is about the mirror's process, not about the cell."""


class Unavailable(Exception):
    """W&B takes nothing now; the message says why, without secrets."""


class Tracker:
    """Runs in one project of W&B, online or as offline files."""

    def __init__(self, config: TrackerConfig) -> None:
        self.config = config
        self.root = Path(config.folder).absolute()
        self.online = config.kind == "online"
        self._checked = -math.inf

    @property
    def destination(self) -> str:
        """Names where runs go: what was sent there need not be sent again."""
        where = _server() if self.online else str(self.root)
        return f"{self.config.kind} {where} {self.config.entity or ''}/{self.config.project}"

    def check(self) -> None:
        """Raise `Unavailable` where the folder cannot be written or no server answers; a good answer holds for a while."""
        if time.monotonic() - self._checked < TRUSTED:
            return
        with _translated():
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):  # else wandb silently writes to the system's temporary folder
                pass
            os.environ.update({"WANDB_DATA_DIR": str(self.root), "WANDB_CACHE_DIR": str(self.root / "cache")})
            if self.online:
                _ask(_server(), self.config.timeout)
        self._checked = time.monotonic()

    def begin(self, title: Title) -> "Run":
        """Open a run, or go on with the one of this id; raises `Unavailable`."""
        self.check()
        timeout = self.config.timeout
        known = {"init_timeout": timeout, "login_timeout": timeout, "finish_timeout": timeout, **QUIET}
        settings = wandb.Settings(**{key: value for key, value in known.items() if key in wandb.Settings.model_fields})
        with _translated():
            return Run(
                wandb.init(
                    mode=self.config.kind, dir=self.root, project=self.config.project, entity=self.config.entity, id=title.run,
                    name=title.name, group=title.group, job_type=title.job_type, tags=title.tags, config=title.config,
                    reinit="create_new", resume="allow", settings=settings,
                )
            )  # fmt: skip

    def discard(self, files: Path) -> None:
        """Remove the files of a run that was begun in this tracker's folder."""
        if self.root in files.parents:
            shutil.rmtree(files, ignore_errors=True)


class Run:
    """An open run."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.phases: set[str] = set()

    @property
    def files(self) -> Path:
        """The folder of its files on this machine."""
        return Path(self.handle.dir).parent

    @property
    def known(self) -> int | None:
        """How many lines of the learning curve the server has; None where it does not know the run."""
        return self.handle.starting_step if self.handle.resumed else None

    def log(self, number: int, row: dict[str, Any]) -> None:
        """One line of the learning curve, at its number in the file: phases would go back in steps."""
        with _translated():
            self._define(row)
            self.handle.log(row, step=number)

    def attach(self, store: Path, files: Iterable[str]) -> None:
        """Give the run files of the store, under the paths that they have there: `parebench-report` reads them as the records."""
        with _translated():
            for file in files:
                self.handle.save(glob.escape(str(store / file)), base_path=str(store), policy="now")

    def finish(self, title: Title, summary: dict[str, Any], table: list[list[Any]], code: int) -> None:
        """Write everything that the end of a cell brings, and close the run; raises `Unavailable` where it was not all sent."""
        with _translated():
            self.handle.config.update(title.config, allow_val_change=True)
            self.handle.tags = title.tags
            self.handle.summary.update(summary)
            if table:
                self.handle.summary[keys.RESULTS] = wandb.Table(columns=list(keys.COLUMNS), data=table)
            self.handle.finish(exit_code=code)

    def _define(self, row: dict[str, Any]) -> None:
        for phase in {name.split("/")[1] for name in row} - self.phases:
            self.handle.define_metric(keys.step(phase), hidden=True)
            self.handle.define_metric(keys.curve(phase, "*"), step_metric=keys.step(phase))
            self.phases.add(phase)


def _server() -> str:
    return wandb.setup().settings.base_url


def _ask(server: str, timeout: float) -> None:
    """One request, whose answer does not matter: only whether there is one."""
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError as answer:
        if answer.code in (502, 503, 504):
            raise Unavailable(f"{server} answers {answer.code}") from answer
    except OSError as error:
        raise Unavailable(f"{server} does not answer ({getattr(error, 'reason', error)})") from error


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Unavailable:
        raise
    except Exception as error:  # whatever goes wrong in there, the sweep goes on
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Unavailable(redact(line)) from error
