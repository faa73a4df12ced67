"""What Weights & Biases shows of one attempt at a cell, read from its folder in the store. Knows nothing of wandb. Torch-free."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import lease
from harness import trackkeys as keys
from harness.record import Record
from harness.redact import redact
from harness.registry import files, load_spec
from harness.store import Store
from harness.typed import as_plain
from tasks.spec import KINDS

DONE, RUNNING, INTERRUPTED = "done", "running", "interrupted"
SHOWN_OF_MODEL = ("name", "family", "max_length")
LONGEST_TAG = 64
"""Characters; wandb refuses a run with a longer one."""
NAMES = (keys.METHOD, keys.MODEL, keys.TASK, keys.BUDGET)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; `code` is the exit code of the W&B run, 0 only where the cell is done."""

    status: str
    code: int = 0
    lines: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class Attempt:
    """The newest attempt at a cell."""

    store: Store
    cell: str
    number: int
    taken: str
    """Text of `attempts/<number>.json`, the lease; empty for records that were copied without their attempts."""

    @property
    def folder(self) -> Path:
        """The cell's folder."""
        return self.store.folder(self.cell)

    @property
    def run(self) -> str:
        """The id of the W&B run: cell, attempt, and a digest that tells a forced rerun from the first run."""
        digest = hashlib.sha256(self.taken.encode()).hexdigest()[:6] if self.taken else "record"
        return f"{self.cell}-{self.number}-{digest}"

    @cached_property
    def record(self) -> Record | None:
        """The record, looked up once; `ValueError` where it is damaged."""
        return self.store.record(self.cell)

    def ending(self) -> Ending | None:
        """How it ended; None while it has not."""
        if self.record is not None:
            return Ending(DONE)
        values = lease.ending(self.folder, self.number)
        if values is None:
            return None
        code = 0 if values["status"] == DONE else abs(values["code"]) or 1
        lines = tuple(redact(line) for line in values["lines"])
        return Ending(values["status"], code, lines, values["seconds"])

    def alive(self) -> bool:
        """Whether its dispatcher or its process lives."""
        return bool(self.taken) and lease.alive(self.folder, self.number)

    def title(self, sweep: str, status: str) -> "Title | None":
        """What stands above the run; None as long as the configuration is not written."""
        half = self.record.identity if self.record else _unfinished(_read(self.folder / "config.json"))
        if half is None:
            return None
        config = self._config(half)
        method, model, task = (str(config[key]) for key in (keys.METHOD, keys.MODEL, keys.TASK))
        seed = f" s{config[keys.SEED]}" if keys.SEED in config else ""
        tags = tuple(tag[:LONGEST_TAG] for tag in (str(config[keys.FAMILY]), model, task, status))
        return Title(self.run, f"{method} {model} {task}{seed} {self.cell[:6]}", sweep, method, tags, config)

    def _config(self, half: dict[str, Any]) -> dict[str, Any]:
        names = {key: half[key]["name"] for key in NAMES}
        path = files().get(names[keys.METHOD])
        own = {keys.CELL: self.cell, keys.FAMILY: path.parent.name if path else "unknown", keys.PRECISION: half["precision"]}
        seed = {keys.SEED: half["seed"]} if "seed" in half else {}
        blocks = {key: _without(half.get(key) or {}, "name") for key in (*NAMES, "recipe", "data")}
        origins = {"origin": self.record.origins} if self.record else {}
        return names | own | seed | dict(leaves("", blocks | origins))

    def curve(self) -> list[dict[str, Any]]:
        """The learning curve, one row per line of `history.jsonl`; a torn last line is left out until it is whole.

        Empty while the file is still that of an earlier attempt: a resumed phase first drops what its checkpoint does not include.
        """
        file = self.folder / "history.jsonl"
        if not file.is_file() or not self._owns(file):
            return []
        whole, _, _ = file.read_text(errors="replace").rpartition("\n")
        return list(_rows(json.loads(line) for line in whole.splitlines()))

    def _owns(self, history: Path) -> bool:
        if self.number == 1 or not self.taken or self.ending() is not None:
            return True
        began = _changed(self.folder / "config.json")
        return began >= json.loads(self.taken)["taken"] and _changed(history) >= began


@dataclass(frozen=True)
class Title:
    """What stands above a W&B run."""

    run: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]
    """Family, model, task, status."""
    config: dict[str, Any]


def stamp(store: Store, cell: str) -> int:
    """Changes whenever an attempt at a cell begins or ends; -1 where none was made."""
    try:
        return (store.folder(cell) / "attempts").stat().st_mtime_ns
    except OSError:
        return -1


def newest(store: Store, cell: str) -> Attempt | None:
    """The newest attempt at a cell; None where none was made."""
    number = lease.latest(store.folder(cell))
    if number:
        return Attempt(store, cell, number, (store.folder(cell) / "attempts" / f"{number}.json").read_text())
    record = store.record(cell)
    return Attempt(store, cell, record.attempts, "") if record else None


def summary(attempt: Attempt, ending: Ending) -> dict[str, Any]:
    """The numbers of a finished cell, or how a failed one ended."""
    record = attempt.record
    if record is None:
        ended = {"seconds": ending.seconds, keys.LOG: "\n".join(ending.lines) or None}
        known = {key: value for key, value in ended.items() if value is not None}
        return {keys.STATUS: ending.status, keys.ATTEMPTS: attempt.number, **known}
    metrics = {keys.result(r.protocol, r.variant, name): value for r in record.results for name, value in r.metrics.items()}
    return {
        keys.STATUS: ending.status, keys.ATTEMPTS: record.attempts, **metrics,
        **{keys.cost(path): value for path, value in numbers(record.costs | _spent(record))},
        **{keys.measure(path): value for path, value in numbers(record.measures)},
        **{keys.selection(path): value for path, value in numbers(record.selection)},
    }  # fmt: skip


def table(record: Record) -> list[list[Any]]:
    """Rows of the per-task table, in the columns `trackkeys.COLUMNS`."""
    return [[r.protocol, r.variant, name, float(value), r.n] for r in record.results for name, value in r.metrics.items()]


def files_of(record: Record) -> list[str]:
    """The record, its predictions and what else it vouches for, relative to the store: what a table is made from."""
    names = dict.fromkeys(["record.json", *record.files, *(result.predictions for result in record.results)])
    return [f"{record.cell}/{name}" for name in names]


def numbers(tree: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numeric leaves of nested dicts, with their keys joined by slashes."""
    return ((path, value) for path, value in leaves("", tree) if isinstance(value, int | float) and not isinstance(value, bool))


def leaves(prefix: str, tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, with their keys joined by slashes."""
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else str(key)
        if isinstance(value, dict):
            yield from leaves(path, value)
        else:
            yield path, value


def _spent(record: Record) -> dict[str, Any]:
    training = [phase for phase in record.phases if phase.steps > 0]
    seconds = sum(phase.seconds for phase in training)
    return {
        "seconds": record.seconds, "peak_memory": max((p.peak_device or p.peak_rss for p in record.phases), default=None),
        "tokens_per_second": sum(p.tokens for p in training) / seconds if seconds else None,
    }  # fmt: skip


def _rows(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    before: dict[str, tuple[float, float]] = {}
    for line in lines:
        phase = line["phase"]
        row = {keys.curve(phase, name): value for name, value in line.items() if name != "phase"}
        if "tokens" in line and "seconds" in line:
            tokens, seconds = before.get(phase, (0, 0.0))
            before[phase] = line["tokens"], line["seconds"]
            if line["seconds"] > seconds:
                row[keys.curve(phase, "tokens_per_second")] = (line["tokens"] - tokens) / (line["seconds"] - seconds)
        yield row


def _unfinished(container: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of a `config.json` that the identity of a finished cell holds too."""
    if container is None:
        return None
    recipe = {key: value for key, value in (container.get("recipe") or {}).items() if value is not None}
    model = {key: value for key, value in container["model"].items() if key in SHOWN_OF_MODEL}
    method, task = container["method"], container["task"]
    if method["name"] in files():
        method = as_plain(load_spec(method["name"]).config, method)
    if task.get("kind") in KINDS:
        task = as_plain(KINDS[task["kind"]], task)
    return container | {"method": _without(method, "recipes"), "model": model, "task": task, "recipe": recipe, "data": {}}


def _without(block: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
