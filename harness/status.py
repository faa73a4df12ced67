"""In what state the cells of a store are, read from its files alone. Torch-free; 10,000 cells take seconds."""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import lease, manifest, progress, stale
from harness.human import changed, duration, headline
from harness.progress import Progress
from harness.record import Record
from harness.store import Store
from methods.spec import UserError

FAILED = ("oom", "diverged", "timeout", "error", "disk_full")
"""Classes of failure; all but a timeout with progress wait for `retry`."""
UNFINISHED = (*FAILED, "interrupted", "damaged")
STATES = ("done", "stale", "running", "queued", "missing", *UNFINISHED, "skipped")
"""`queued` = not begun while a dispatcher of the sweep is alive, `missing` = not begun and nobody will by itself,
`damaged` = a file that cannot be read, `interrupted` = begun, without an end or asked to stop; goes on with the next command."""


@dataclass(frozen=True)
class Status:
    """One cell as it stands."""

    cell: str
    """Its id; empty for an impossible cell."""
    label: str
    values: str
    """Single values that set it apart from the other cells shown."""
    state: str
    """One of `STATES`."""
    reasons: tuple[str, ...] = ()
    """Why it is stale, skipped or damaged; the last line of its log where it failed."""
    seconds: float | None = None
    """Of the finished cell or failed attempt; since the start of a running one."""
    headline: str = ""
    """Its primary numbers."""
    progress: Progress | None = None
    sweep: str | None = None
    """For which sweep it runs."""
    configuration: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The recorded identity of a finished cell, the config.json of any other; empty where the label came from a manifest."""

    @property
    def detail(self) -> str:
        """What there is to say beside the state."""
        if self.progress is None:
            return self.headline or "; ".join(self.reasons)
        left = f" ETA {duration(self.progress.eta)}" if self.progress.eta is not None else ""
        return f"{self.progress.where}{left}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; without the configuration."""
        shown = ("cell", "label", "values", "state", "reasons", "seconds", "headline")
        running = None if self.progress is None else vars(self.progress)
        return {name: getattr(self, name) for name in shown} | {"progress": running}


def sweep(store: Store, name: str) -> list[Status]:
    """Every cell that was ever asked for under this name, in the order of the grid; `UserError` if there is no such sweep."""
    asked = manifest.distinct(manifest.commands(store.root, name))
    cells = [_asked(store, cell) for cell in asked]
    if any(cell.state == "running" and cell.sweep == name for cell in cells):
        cells = [replace(cell, state="queued") if cell.state == "missing" else cell for cell in cells]
    return _apart(cells)


def all_cells(store: Store) -> list[Status]:
    """Every cell that has a folder, by label; `UserError` if there is no store."""
    if not store.root.is_dir():
        raise UserError(f"there is no store {store.root}; give the folder of the records: --store <folder>")
    found = [state(store, name) for name in folders(store)]
    found.sort(key=lambda cell: (cell.label, cell.cell))
    groups: dict[str, list[Status]] = defaultdict(list)
    for cell in found:
        groups[cell.label].append(cell)
    return [cell for group in groups.values() for cell in _differing(group)]


def folders(store: Store) -> list[str]:
    """The ids of all cells that have a folder."""
    with os.scandir(store.root) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def records(store: Store) -> Iterator[Record]:
    """The records that can be read, in the order of their cells."""
    for cell in folders(store) if store.root.is_dir() else ():
        if (found := readable(store, cell)) is not None:
            yield found


def readable(store: Store, cell: str) -> Record | None:
    """The record of a finished cell; None also where it is damaged, for such a cell counts as unfinished."""
    try:
        return store.record(cell)
    except ValueError:
        return None


def totals(cells: Iterable[Status]) -> dict[str, int]:
    """How many cells are in each state that occurs, in the order of `STATES`."""
    count = Counter(cell.state for cell in cells)
    return {name: count[name] for name in STATES if count[name]}


def state(store: Store, cell: str, label: str = "") -> Status:
    """The state of one cell: a living owner comes first, then the record, then how the newest attempt ended."""
    folder = store.folder(cell)
    names = _names(folder)
    unended = "attempts" in names and _unended(_names(folder / "attempts"))
    if unended and (owner := lease.holder(folder)):
        now = Status(cell, label, "", "running", seconds=time.time() - owner.taken, progress=progress.read(folder), sweep=owner.sweep)
        return _labelled(now, folder)
    if "record.json" in names:
        return _finished(store, cell, label)
    return _labelled(_unfinished(cell, label, folder, names, unended), folder)


def describe(half: Mapping[str, Any], seed: int | None) -> str:
    """`lora minilm glue/sst2 seed 0` of a configuration or a recorded identity; no seed where it is moot."""
    return " ".join([*(str(half[key]["name"]) for key in ("method", "model", "task")), *([] if seed is None else [f"seed {seed}"])])


def _asked(store: Store, asked: dict[str, Any]) -> Status:
    values = changed(asked["overrides"])
    if not asked["cell"]:
        return Status("", asked["label"], values, "skipped", (asked.get("reason") or "",))
    return replace(state(store, asked["cell"], asked["label"]), values=values)


def _finished(store: Store, cell: str, label: str) -> Status:
    try:
        record = store.record(cell)
        reasons = tuple(stale.reasons(record, store))
    except (ValueError, KeyError, TypeError, OSError) as error:
        return Status(cell, label, "", "damaged", (str(error),))
    shown = label or describe(record.identity, None if record.deterministic else record.seed)
    half = {} if label else record.identity
    state = "stale" if reasons else "done"
    return Status(cell, shown, "", state, reasons, record.seconds, headline(record), configuration=half)


def _unfinished(cell: str, label: str, folder: Path, names: set[str], unended: bool) -> Status:
    if unended:
        return Status(cell, label, "", "interrupted", ("its dispatcher is gone",))
    if "outcome.json" not in names:
        return Status(cell, label, "", "missing")
    try:
        outcome = _json(folder / "outcome.json")
        lines = [line.strip() for line in outcome["lines"] if line.strip()]
        return Status(cell, label, "", str(outcome["status"]), tuple(lines[-1:]), float(outcome["seconds"]))
    except (ValueError, KeyError, TypeError, OSError) as error:
        return Status(cell, label, "", "damaged", (f"outcome.json cannot be read ({error})",))


def _labelled(cell: Status, folder: Path) -> Status:
    """With the label and configuration of its config.json, where the label is not known."""
    if cell.label:
        return cell
    try:
        config = _json(folder / "config.json")
        return replace(cell, label=describe(config, config["seed"]), configuration=config)
    except (ValueError, KeyError, TypeError, OSError):
        return cell


def _apart(cells: list[Status]) -> list[Status]:
    """Without the values that all cells share."""
    shared = set.intersection(*(set(cell.values.split()) for cell in cells)) if len(cells) > 1 else set()
    return [replace(cell, values=" ".join(value for value in cell.values.split() if value not in shared)) for cell in cells]


def _differing(cells: list[Status]) -> list[Status]:
    """Cells of one label with the method, recipe, task and budget values in which they differ."""
    if len(cells) == 1:
        return cells
    flat = [_flat(cell.configuration) for cell in cells]
    keys = [key for key in dict.fromkeys(key for values in flat for key in values) if len({values.get(key) for values in flat}) > 1]
    return [
        replace(cell, values=" ".join(f"{key}={values[key]}" for key in keys if values.get(key) is not None))
        for cell, values in zip(cells, flat, strict=True)
    ]


def _flat(half: Mapping[str, Any]) -> dict[str, str | None]:
    blocks = {name: half.get(name) or {} for name in ("method", "recipe", "task", "budget")}
    return {
        f"{name}.{key}": None if value is None else str(value)
        for name, block in blocks.items()
        for key, value in block.items()
        if key != "recipes"
    } | ({"precision": str(half["precision"])} if "precision" in half else {})


def _names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _unended(names: set[str]) -> bool:
    """Whether the newest attempt has no end."""
    newest = max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=0)
    return newest > 0 and f"{newest}.end.json" not in names


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())
