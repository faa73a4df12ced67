"""Records to a typed table: rows are (model, method label), columns are protocols; what may be ranked, and what not."""

import statistics
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import stats
from analysis.changes import BEFORE, interval, with_changes
from analysis.compare import Comparison, Samples, compare_with
from analysis.footnotes import distinct, footnotes
from analysis.layout import Layout
from analysis.load import DONE
from analysis.means import with_means
from analysis.metrics import LOG_SCALE
from analysis.ranks import Ranking, ranking
from analysis.stats import NotComparable, Sample
from analysis.tuning import Tuning, leaky, notes, rankable, tunings

CHANGES = "after-before: the finished model minus the model as loaded, with its 95 % interval, paired per example"
SHOWN = (
    "model", "label", "column", "status", "reason", "seed", "cell", "value", "deterministic", "trainable_method", "trainable_head", "total",
    "sparsity_prunable", "bytes", "bytes_shipped", "seconds", "flops", "peak_memory", "method", "task", "budget", "rate", "origin",
)  # fmt: skip
"""Columns of the frame that rows are made from; `rate` is `recipe.lr`."""
MEDIANS = "numbers are medians over the seeds, not means; what is best or tied is decided on the means"


@dataclass(frozen=True)
class Span:
    """A cost over several cells."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Costs:
    """Side columns; None where no record has the value."""

    trainable: Span | None
    """Parameters trained by the method, the head apart."""
    trainable_method: Span | None
    """Percent of all parameters."""
    trainable_head: Span | None
    sparsity: Span | None
    """Percent of the prunable weights that are zero."""
    bytes: Span | None
    """Of the exported weights."""
    bytes_shipped: Span | None
    """Of what differs from the base model."""
    seconds: Span | None
    flops: Span | None = None
    """Of training."""
    peak_memory: Span | None = None
    """In bytes; of the accelerator where there is one."""


@dataclass(frozen=True)
class Cell:
    """One row under one protocol, over its seeds."""

    values: tuple[float, ...]
    """Per finished seed."""
    attempted: int
    """Seeds that ran, failed ones included; more than `len(values)` = k/n, not ranked."""
    deterministic: bool
    costs: Costs
    missing: str = ""
    """Why there is no value, or fewer than attempted."""
    best: bool = False
    tied: bool = False
    """Cannot be told from the best (paired comparison, Holm at 5 %)."""
    median: bool = False
    """Shown as the median over the seeds."""
    interval: tuple[float, float] | None = None
    """95 % interval of a change, paired per example; None for what is no change, or cannot be compared."""
    second: bool = False
    """The second best of its model, among the ranked rows."""
    tuning: tuple[Tuning, ...] = ()
    """What its learning rates came from; empty where nothing is trained."""
    leaky: bool = False
    """Its checkpoint was chosen on the reported rows."""

    @property
    def mean(self) -> float:
        """Mean over the finished seeds."""
        return statistics.fmean(self.values)

    @property
    def center(self) -> float:
        """What is shown: the mean, or the median where the layout says so."""
        return statistics.median(self.values) if self.median else self.mean

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two or a deterministic method."""
        return None if self.deterministic or len(self.values) < 2 else statistics.stdev(self.values)

    @property
    def complete(self) -> bool:
        """Every attempted seed finished."""
        return bool(self.values) and len(self.values) == self.attempted


@dataclass(frozen=True)
class Row:
    """One method (with its settings) on one model."""

    model: str
    label: str
    cells: dict[str, Cell]
    costs: Costs
    """Over all its cells."""


@dataclass(frozen=True)
class Column:
    """One protocol: never more than one in a column."""

    name: str
    metric: str
    higher_is_better: bool
    examples: int
    decimals: int
    rows: dict[str, Any]
    """What the record keeps of the evaluated rows."""
    detectable: dict[str, float | None]
    """Minimum detectable difference by model (of the logarithms for perplexity); None where it cannot be known."""


@dataclass(frozen=True)
class Across:
    """Rows of one model ranked across the tasks that were measured in one form."""

    model: str
    form: str
    """What the protocol ids say after the task, for instance `heldout`."""
    ranking: Ranking


@dataclass(frozen=True)
class Table:
    """Everything that an output format shows."""

    title: str
    heading: str
    columns: list[Column]
    rows: list[Row]
    comparisons: list[Comparison]
    footnotes: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """What the cells ran with, as `name value`."""
    rankings: list[Across] = field(default_factory=list)

    def blocks(self) -> list["Block"]:
        """Rows in groups of models that were measured under the same columns, so that no group has columns of blanks."""
        used: dict[str, tuple[str, ...]] = {}
        for model in dict.fromkeys(row.model for row in self.rows):
            own = [row for row in self.rows if row.model == model]
            used[model] = tuple(c.name for c in self.columns if any(row.cells[c.name].attempted for row in own))
        return [
            Block([c for c in self.columns if c.name in names], [row for row in self.rows if used[row.model] == names])
            for names in dict.fromkeys(used.values())
        ]


@dataclass(frozen=True)
class Block:
    """Part of a table: columns, and the rows of the models that have them."""

    columns: list[Column]
    rows: list[Row]

    @property
    def models(self) -> list[str]:
        """Models in the order of their rows."""
        return list(dict.fromkeys(row.model for row in self.rows))


def table(frame: pd.DataFrame, store: Path, layout: Layout, *, before: bool = False) -> Table:
    """The table of a frame from `analysis.load.load`; `store` holds the predictions.

    Best and tied rows are marked within a model, among rows all of whose seeds finished. What was measured before training has
    rows of its own only with `before`. Raises `UserError` for a baseline that is in no row.
    """
    means = with_means(frame, layout.means)
    whole, changes = with_changes(means.frame)
    samples = Samples(whole, store, means.columns | changes)
    measured, frame = (part if before else part[part["variant"] != BEFORE] for part in (frame, whole))
    names = list(dict.fromkeys(frame["column"].dropna().sort_values()))
    median = layout.center == "median"
    own = lines(measured)
    rows = [_row(*key, group, names, own.get(key, []), median) for key, group in sorted(lines(frame).items())]
    problems: list[str] = [*means.notes, *([CHANGES] if changes else []), *([MEDIANS] if median else [])]
    for name in names:
        for model in dict.fromkeys(row.model for row in rows):
            _mark(model, name, rows, frame, samples, problems)
            if name in changes:
                _show_intervals(model, name, rows, samples)
    columns = [_column(frame, name, rows, samples, layout) for name in names]
    rankings = _rankings([column for column in columns if column.name not in samples.derived], rows, samples, problems)
    comparisons = compare_with(frame, samples, layout.baseline) if layout.baseline else []
    said = [*footnotes(measured, rows), *notes(measured, rows), *problems]
    return Table(layout.title, layout.heading, columns, rows, comparisons, said, _versions(measured), rankings)


def lines(frame: pd.DataFrame) -> dict[tuple[str, str], list[Any]]:
    """(model, label) -> its lines of the frame as named tuples of `SHOWN`: with thousands of cells a data frame of each is slow."""
    found: dict[tuple[str, str], list[Any]] = {}
    for line in frame.rename(columns={"recipe.lr": "rate"}).reindex(columns=list(SHOWN)).itertuples(index=False, name="Line"):
        found.setdefault((line.model, line.label), []).append(line)
    return found


def _row(model: str, label: str, group: list[Any], names: list[str], measured: list[Any], median: bool) -> Row:
    cells = {name: replace(_cell([line for line in group if line.column == name]), median=median, leaky=leaky(name)) for name in names}
    return Row(model, label, cells, _costs([line for line in measured if line.status == DONE]))


def _cell(group: list[Any]) -> Cell:
    ordered = sorted((line for line in group if line.status == DONE), key=lambda line: (line.seed, line.cell))
    done = list({line.seed: line for line in reversed(ordered)}.values())[::-1]
    costs = _costs(done)
    if not group:
        return Cell((), 0, False, costs, "not run")
    skipped = [line.reason for line in group if line.status == "skipped"]
    if skipped and not done:
        return Cell((), 0, False, costs, f"skipped: {skipped[0]}")
    seeds = {line.seed for line in done}
    failed = [line for line in group if line.status not in (DONE, "skipped") and line.seed not in seeds]
    deterministic = bool(done) and all(line.deterministic for line in done)
    attempted, missing = len(done) + len({line.seed for line in failed}), ", ".join(sorted({line.status for line in failed}))
    tuning = tunings((line.method, line.model, line.task, line.budget, line.rate, line.origin) for line in done)
    return Cell(tuple(line.value for line in done), attempted, deterministic, costs, missing, tuning=tuning)


def _costs(done: list[Any]) -> Costs:
    def known(key: str) -> Span | None:
        return _span([getattr(line, key) for line in done])

    def percent(key: str) -> Span | None:
        return _span([_share(getattr(line, key), line.total) for line in done])

    zeros = _span([_share(line.sparsity_prunable, 1) for line in done])
    return Costs(
        known("trainable_method"), percent("trainable_method"), percent("trainable_head"), zeros,
        *map(known, ("bytes", "bytes_shipped", "seconds", "flops", "peak_memory")),
    )  # fmt: skip


def _missing(value: float | None) -> bool:
    return value is None or value != value  # NaN


def _share(part: float | None, whole: float | None) -> float | None:
    return None if _missing(part) or _missing(whole) else 100 * part / whole


def _span(values: list[float | None]) -> Span | None:
    known = [float(value) for value in values if not _missing(value)]
    return Span(min(known), statistics.fmean(known), max(known)) if known else None


def _mark(model: str, name: str, rows: list[Row], frame: pd.DataFrame, samples: Samples, problems: list[str]) -> None:
    """Mark best, second and tied cells of one model in one column; without usable predictions nothing is marked, and it is said."""
    ranked = [row for row in rows if row.model == model and row.cells[name].complete]
    ranked = list(compress(ranked, rankable([row.cells[name] for row in ranked])))
    if len(ranked) < 2:
        return
    higher = bool(frame[(frame["column"] == name) & (frame["status"] == DONE)]["higher_is_better"].iloc[0])
    try:
        column = [samples.get(model, name, row.label) for row in ranked]
        best, tied = stats.not_told_from_best(column, higher)
    except NotComparable as error:
        problems.append(f"{name}, {model}: not ranked, since {error}")
        return
    means = [row.values.mean() if higher else -row.values.mean() for row in column]
    second = max((i for i in range(len(column)) if i != best), key=lambda i: means[i])
    for i, row in enumerate(ranked):
        row.cells[name] = replace(row.cells[name], best=i == best, tied=i in tied, second=i == second)


def _rankings(columns: list[Column], rows: list[Row], samples: Samples, problems: list[str]) -> list[Across]:
    """Per model and protocol form with two tasks or more: the rows that finished all of them, ranked across."""
    forms: dict[str, list[Column]] = {}
    for column in columns:
        forms.setdefault(column.name.partition("@")[2], []).append(column)
    found = []
    for model in dict.fromkeys(row.model for row in rows):
        for form, own in forms.items():
            measured = [column for column in own if any(row.cells[column.name].values for row in rows if row.model == model)]
            if across := _across(model, form, measured, rows, samples, problems):
                found.append(across)
    return found


def _across(model: str, form: str, columns: list[Column], rows: list[Row], samples: Samples, problems: list[str]) -> Across | None:
    """The ranking of the rows that are complete and may be ranked in every column, on the same seeds; None for fewer than two."""
    complete = [row for row in rows if row.model == model and all(row.cells[column.name].complete for column in columns)]
    for column in columns:
        complete = list(compress(complete, rankable([row.cells[column.name] for row in complete])))
    if len(columns) < 2 or len(complete) < 2:
        return None
    try:
        taken = {row.label: [samples.get(model, column.name, row.label) for column in columns] for row in complete}
        kept = _same_seeds(taken)
        if left := [label for label in taken if label not in kept]:
            problems.append(f"{model}, {form}: not ranked across tasks, since not measured on the same seeds throughout: {', '.join(left)}")
        by_task = {column.name: [taken[label][i] for label in kept] for i, column in enumerate(columns)}
        found = ranking(by_task, {column.name: column.higher_is_better for column in columns}) if len(kept) > 1 else None
        return found and Across(model, form, found)
    except NotComparable as error:
        problems.append(f"{model}, {form}: not ranked across tasks, since {error}")
        return None


def _same_seeds(taken: dict[str, list[Sample]]) -> list[str]:
    """The labels whose seeds on all tasks are those of most rows (of equally many: the most seeds); deterministic rows fit all."""
    seeds = {label: {one.seeds for one in row if not one.deterministic} for label, row in taken.items()}
    common = Counter(next(iter(own)) for own in seeds.values() if len(own) == 1)
    most = max(common, key=lambda own: (common[own], len(own)), default=None)
    return [label for label, own in seeds.items() if own <= {most}]


def _show_intervals(model: str, name: str, rows: list[Row], samples: Samples) -> None:
    """Give the cells of one model in a column of changes their intervals."""
    own = {row.label: row for row in rows if row.model == model and row.cells[name].values}
    column = samples.column(model, name, own)
    for found in column:
        row = own[found.label]
        row.cells[name] = replace(row.cells[name], interval=interval(found, column))


def _column(frame: pd.DataFrame, name: str, rows: list[Row], samples: Samples, layout: Layout) -> Column:
    done = frame[(frame["column"] == name) & (frame["status"] == DONE)]
    first = done.iloc[0]
    decimals = layout.decimals if layout.decimals is not None else 2 if first["metric"] in LOG_SCALE else 3
    detectable = {model: _detectable(name, model, rows, samples) for model in dict.fromkeys(done["model"])}
    return Column(name, first["metric"], bool(first["higher_is_better"]), int(first["n"]), decimals, first["rows"], detectable)


def _detectable(name: str, model: str, rows: list[Row], samples: Samples) -> float | None:
    labels = [row.label for row in rows if row.model == model and row.cells[name].complete]
    column = samples.column(model, name, labels)
    return stats.minimum_detectable_difference(column, stats.pooled_seed_variance(column)) if len(column) > 1 else None


def _versions(frame: pd.DataFrame) -> list[str]:
    blocks = pd.json_normalize(distinct(frame[frame["status"] == DONE]["numerics"]))
    return [f"{name.removeprefix('packages.')} {', '.join(sorted(set(map(str, blocks[name].dropna()))))}" for name in blocks]
