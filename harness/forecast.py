"""How long the cells of a grid will take and how much they will keep on disk, from earlier records. Torch-free."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from harness.clean import used
from harness.record import Record
from harness.store import Store

SAME, SIMILAR, NONE = "same", "similar", "none"
"""What a cell's forecast rests on: records of its method, model, task and budget; those of its model and task whatever the
method, scaled by the training examples; nothing."""


@dataclass(frozen=True)
class Work:
    """What decides how long a cell takes, of a record or of a planned cell."""

    method: str
    model: str
    task: str
    """The whole task block as text: a limit on its rows is another task here."""
    budget: str
    trained: bool
    examples: float | None
    """Training examples; None where they cannot be known yet."""


@dataclass(frozen=True)
class Sample:
    """What one finished cell took."""

    work: Work
    seconds: float
    model: int
    """Bytes of its exported weights."""
    folder: Path

    @cached_property
    def kept(self) -> int:
        """Bytes of its folder without an exported model."""
        return sum(used(path) for path in self.folder.iterdir() if path.name != "model")


@dataclass(frozen=True)
class Estimate:
    """What one cell is expected to take."""

    basis: str
    """`SAME`, `SIMILAR` or `NONE`."""
    seconds: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Forecast:
    """The sum over the cells to run. Cells without a basis count nothing, so that it is a lower bound where there are any."""

    seconds: float
    """Wall time: the sum divided by the workers, and never less than the longest cell."""
    bytes: float
    basis: Mapping[str, int]
    """How many cells rest on what."""


def work(half: Mapping[str, Any], rows: Mapping[str, int]) -> Work:
    """Of an `Identity.canonical` or recorded identity; `rows` = training rows by name of the task, for budgets given in epochs."""
    trained, task, budget = "recipe" in half, half["task"]["name"], half["budget"]
    examples = budget.get("examples") if trained else 0
    if trained and examples is None and task in rows:
        examples = half["recipe"]["epochs"] * rows[task]
    name = half["method"]["name"]
    return Work(name, half["model"]["name"], _text(half["task"]), _text(budget), trained, examples)


def training_rows(records: Iterable[Record]) -> dict[str, int]:
    """Name of a task -> its training rows, from the records that trained on it."""
    return {record.identity["task"]["name"]: record.data["train"]["rows"] for record in records if "rows" in record.data.get("train", {})}


class Earlier:
    """The finished cells of a store, found by what they have in common with a planned one."""

    def __init__(self, store: Store, records: Sequence[Record]) -> None:
        self.rows = training_rows(records)
        self.same: dict[Work, list[Sample]] = defaultdict(list)
        self.similar: dict[Work, list[Sample]] = defaultdict(list)
        for record in records:
            done = work(record.identity, self.rows)
            sample = Sample(done, record.seconds, int(record.costs.get("bytes") or 0), store.folder(record.cell))
            self.same[replace(done, examples=None)].append(sample)
            self.similar[_similar(done)].append(sample)

    def estimate(self, half: Mapping[str, Any], keep_model: bool = False) -> Estimate:
        """Median seconds and bytes of the same method, model, task and budget; else of the model and task, scaled by training examples."""
        cell = work(half, self.rows)
        if alike := self.same.get(replace(cell, examples=None)):
            return Estimate(SAME, median(one.seconds for one in alike), _bytes(alike, keep_model))
        alike = self.similar.get(_similar(cell), [])
        scaled = [one.seconds * ratio for one in alike if (ratio := _ratio(cell, one.work)) is not None]
        return Estimate(SIMILAR, median(scaled), _bytes(alike, keep_model)) if scaled else Estimate(NONE)


def forecast(estimates: Sequence[Estimate], workers: int) -> Forecast:
    """Wall time over `workers` and bytes in all."""
    seconds = [one.seconds for one in estimates]
    basis: dict[str, int] = defaultdict(int)
    for one in estimates:
        basis[one.basis] += 1
    return Forecast(max(sum(seconds) / workers, max(seconds, default=0.0)), sum(one.bytes for one in estimates), dict(basis))


def _similar(cell: Work) -> Work:
    return replace(cell, method="", budget="", examples=None)


def _ratio(cell: Work, earlier: Work) -> float | None:
    """By how much longer a cell trains; 1 where neither trains, None where that is not known."""
    if not cell.trained:
        return 1.0
    return cell.examples / earlier.examples if cell.examples and earlier.examples else None


def _bytes(alike: Sequence[Sample], keep_model: bool) -> float:
    return median(one.kept for one in alike) + (median(one.model for one in alike) if keep_model else 0)


def _text(block: Mapping[str, Any]) -> str:
    return repr(sorted(block.items(), key=lambda item: item[0]))
