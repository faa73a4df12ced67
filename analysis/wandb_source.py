"""Weights & Biases as a source of records: what the mirror gave to its runs becomes a store again, and is read as any store.

A run of a finished cell carries the cell's record and predictions as files (`harness.tracking.Run.attach`), byte for byte, so a table
from W&B is the table from the store. A failed cell is remade from its run's configuration and summary. A finished cell whose run carries
no record (mirrored by an earlier version, or not uploaded whole) is shown as missing, with that reason.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.wandb_files import read_run
from harness import trackkeys as keys
from harness.store import Store, write_json
from methods.spec import UserError

log = logging.getLogger(__name__)

DONE, RUNNING = "done", "running"
NO_RECORD = "not mirrored"
"""The status of a cell that is done and whose run lacks its files."""


@dataclass(frozen=True)
class MirroredRun:
    """One run, wherever it is."""

    id: str
    """`<cell>-<attempt>-<digest>`."""
    group: str
    """The sweep."""
    config: Mapping[str, Any]
    """Slash-separated keys (`harness.trackkeys`)."""
    summary: Mapping[str, Any]
    files: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)
    """Path in the store -> writes the file to a place."""

    @property
    def cell(self) -> str:
        """The cell id; empty for a run that is no cell of parebench."""
        return str(self.config.get(keys.CELL) or "")

    @property
    def attempt(self) -> tuple[bool, bool, int]:
        """Of several runs of a cell the greatest counts: with a record, done, the latest attempt."""
        number = self.id.removeprefix(f"{self.cell}-").partition("-")[0]
        return self._record in self.files, self.summary.get(keys.STATUS) == DONE, int(number) if number.isdigit() else 0

    @property
    def _record(self) -> str:
        return f"{self.cell}/record.json"

    def write(self, store: Path) -> None:
        """Lay the cell out in `store`: its files, or how it ended."""
        status = str(self.summary.get(keys.STATUS) or RUNNING)
        if self._record in self.files:
            for name, copy in self.files.items():
                (store / name).parent.mkdir(parents=True, exist_ok=True)
                copy(store / name)
        elif status != RUNNING:
            lines = str(self.summary.get(keys.LOG) or "").splitlines()
            gone = "its run holds no record.json; mirror it again: parebench-sweep sync"
            ended = (NO_RECORD, [gone]) if status == DONE else (status, lines)
            write_json(store / self.cell / "outcome.json", dict(zip(("status", "lines"), ended, strict=True)), durable=False)
            write_json(store / self.cell / "config.json", configuration(self.config, self.group), durable=False)


def configuration(flat: Mapping[str, Any], sweep: str) -> dict[str, Any]:
    """A cell's configuration out of the slash-separated one of its run."""
    half: dict[str, Any] = {name: {"name": flat[name]} for name in (keys.METHOD, keys.MODEL, keys.TASK, keys.BUDGET)} | {"recipe": {}}
    for key, value in flat.items():
        *blocks, last = key.split("/")
        if blocks:
            place = half
            for block in blocks:
                place = place.setdefault(block, {})
            place[last] = value
    return half | {"seed": flat.get(keys.SEED, 0), "precision": flat[keys.PRECISION], "run": {"sweep": sweep}}


def rebuild(runs: Iterable[MirroredRun], store: Path) -> None:
    """Lay the cells of `runs` out as a store; `UserError` where none of them is a cell."""
    best: dict[str, MirroredRun] = {}
    sweeps: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        if run.cell and (run.cell not in best or run.attempt >= best[run.cell].attempt):
            best[run.cell] = run
        if run.cell:
            sweeps.setdefault(run.group, []).append({"cell": run.cell})
    if not best:
        raise UserError("W&B has no runs of parebench there; mirror a sweep with tracker=offline or tracker=online, or sync it afterwards")
    for run in best.values():
        run.write(store)
    for sweep, cells in sweeps.items():
        Store(store).join(sweep, [], cells)


def offline(folder: Path) -> Iterator[MirroredRun]:
    """The runs of all `.wandb` files below `folder`, in the order of their names (wandb's begin with the time)."""
    if not folder.is_dir():
        raise UserError(f"--wandb-dir {folder} is no folder; give the one that holds the offline runs, such as <store>/.wandb")
    for path in sorted(folder.rglob("*.wandb")):
        try:
            run = read_run(path)
        except ValueError as error:
            log.warning("%s was not read: %s", path, error)
            continue
        kept = path.parent / "files"
        cell = str(run.config.get(keys.CELL))
        files = {file.relative_to(kept).as_posix(): file for file in sorted((kept / cell).rglob("*")) if file.is_file()}
        yield MirroredRun(run.id, run.group, run.config, run.summary, {name: _copier(file) for name, file in files.items()})


def online(project: str, sweep: str | None, api: Any = None) -> Iterator[MirroredRun]:
    """The runs of a project (`entity/project`), of one sweep where it is given, through `wandb.Api` (or `api`, shaped like it).

    Raises `UserError` where W&B cannot be asked.
    """
    with _translated(project):
        if api is None:
            import wandb

            api = wandb.Api()
        for run in api.runs(project, filters={"group": sweep} if sweep else None):
            config, summary = dict(run.config), dict(run.summary_metrics)
            cell = str(config.get(keys.CELL) or "")
            files = run.files() if cell and summary.get(keys.STATUS) == DONE else ()
            own = {file.name: _downloader(file, project) for file in files if file.name.startswith(f"{cell}/")}
            yield MirroredRun(run.id, run.group or "", config, summary, own)


def _copier(source: Path) -> Callable[[Path], object]:
    return lambda target: shutil.copyfile(source, target)


def _downloader(file: Any, project: str) -> Callable[[Path], object]:
    """Files keep their path below the root that they are downloaded to."""

    def download(target: Path) -> None:
        with _translated(project):
            file.download(root=str(target.parents[len(Path(file.name).parts) - 1]), replace=True).close()

    return download


@contextmanager
def _translated(project: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # wandb raises what its service, its server and the network say, of many types
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--wandb {project} cannot be read ({line}); check the name, WANDB_API_KEY and WANDB_BASE_URL") from error
