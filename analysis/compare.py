"""Paired comparisons of the rows of a frame, from their per-example predictions."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis import stats
from analysis.load import DONE, predictions
from analysis.metrics import LOG_SCALE, to_scale
from analysis.packed import Packed
from analysis.stats import NotComparable, Sample
from methods.spec import UserError

log = logging.getLogger(__name__)

USED = ("model", "column", "label", "seed", "cell", "predictions", "metric", "value", "deterministic")
"""Columns of the frame that a sample is made from."""
REPRODUCED = 1e-6
"""Largest gap (on the comparison scale) between a recorded metric and the one recomputed from its predictions."""


@dataclass(frozen=True)
class Comparison:
    """A paired difference under a protocol, or why there is none."""

    model: str
    column: str
    a: str
    b: str
    difference: stats.Difference | None
    problem: str = ""
    ratio: bool = False
    """The difference is one of logarithms (perplexity)."""


class Derived(Protocol):
    """A column that is made from others (`analysis.means`, `analysis.changes`)."""

    def sample(self, get: Callable[[str, str], Sample], label: str) -> Sample:
        """The sample of a row, from those of other columns and rows: `get(column, label)`."""


class Samples:
    """Bootstrap samples of (model, column, label), each made once."""

    def __init__(self, frame: pd.DataFrame, store: Path, derived: Mapping[str, Derived] | None = None) -> None:
        self.store, self.derived, self.packed = store, derived or {}, Packed(store)
        done = frame.loc[frame["status"] == DONE, list(USED)].sort_values(["seed", "cell"])
        self.groups: dict[tuple[str, str], dict[str, list[Any]]] = {}
        for line in done.drop_duplicates(["model", "column", "label", "seed"]).itertuples(index=False):
            self.groups.setdefault((line.model, line.column), {}).setdefault(line.label, []).append(line)
        self.made: dict[tuple[str, str, str], Sample | NotComparable] = {}

    def get(self, model: str, column: str, label: str) -> Sample:
        """The sample; raises `NotComparable` where the predictions cannot be read or do not give the recorded metric."""
        key = (model, column, label)
        if key not in self.made and column not in self.derived:
            self.made |= {(model, column, name): made for name, made in self._measured(self.groups[model, column]).items()}
        elif key not in self.made:
            try:
                self.made[key] = self._derived(*key)
            except NotComparable as error:
                self.made[key] = error
        made = self.made[key]
        if isinstance(made, NotComparable):
            raise made
        return made

    def _measured(self, rows: dict[str, list[Any]]) -> dict[str, Sample | NotComparable]:
        """The samples of all rows of a column, or why there is none."""
        metric = next(iter(rows.values()))[0].metric
        try:
            made = self._sampled(metric, rows, self._numbers)
        except KeyError:  # a metric of texts, which are not packed
            made = self._sampled(metric, rows, partial(predictions, self.store))
        return {label: one if isinstance(one, NotComparable) else _checked(one, metric, rows[label]) for label, one in made.items()}

    def _sampled(
        self, metric: str, rows: dict[str, list[Any]], read: Callable[[str, str], stats.Predictions]
    ) -> dict[str, Sample | NotComparable]:
        found: dict[str, Sample | NotComparable] = {}
        tables: dict[str, tuple[dict[int, stats.Predictions], bool]] = {}
        for label, lines in rows.items():
            try:
                by_seed = {int(line.seed): read(line.cell, line.predictions) for line in lines}
                tables[label] = by_seed, all(line.deterministic for line in lines)
            except UserError as error:
                found[label] = NotComparable(str(error))
        return found | stats.samples(metric, tables)

    def _numbers(self, cell: str, file: str) -> stats.Predictions:
        packed = self.packed.get(cell, file)
        return predictions(self.store, cell, file) if packed is None else packed

    def _derived(self, model: str, column: str, label: str) -> Sample:
        return self.derived[column].sample(lambda part, whose: self.get(model, part, whose), label)

    def column(self, model: str, column: str, labels: Iterable[str]) -> list[Sample]:
        """The samples of several rows that can be made."""
        found = []
        for label in labels:
            try:
                found.append(self.get(model, column, label))
            except NotComparable as error:
                log.warning("%s", error)
        return found


def _checked(made: Sample, metric: str, lines: list[Any]) -> Sample | NotComparable:
    """The sample, if its predictions give the recorded metric."""
    for line, value in zip(lines, made.values, strict=True):
        if abs(value - to_scale(metric, line.value)) > REPRODUCED:
            why = f"the predictions of seed {line.seed} give {metric} {value:.6f}, recorded is {line.value:.6f}"
            return NotComparable(f"{made.label}: {why}")
    return made


def one_per_seed(group: pd.DataFrame) -> pd.DataFrame:
    """The first record of each seed, by cell id, in the order of the seeds."""
    return group.sort_values(["seed", "cell"]).drop_duplicates("seed")


def compare_with(
    frame: pd.DataFrame, samples: Samples, baseline: str, column: str | None = None, other: str | None = None
) -> list[Comparison]:
    """Paired differences to `baseline` of all rows, or of the rows of `other`, per model and column.

    A method's name stands for all its rows; a baseline that has several rows on a model gives a comparison with each. Models
    without the baseline are left out. Raises `UserError` for a name that is in no row.
    """
    done = frame[frame["status"] == DONE]
    for name in filter(None, (baseline, other)):
        if not _named(done, name).any():
            raise UserError(f"no row is called {name}; there are: {', '.join(sorted(set(done['label'])))}")
    found = []
    for (model, name), group in done.groupby(["model", "column"]):
        if column is not None and column != name:
            continue
        bases = sorted(set(group[_named(group, baseline)]["label"]))
        others = sorted(set(group[_named(group, other)]["label"] if other else group["label"]) - set(bases))
        found += [_comparison(model, name, a, b, group, samples) for b in bases for a in others]
    return found


def _named(frame: pd.DataFrame, name: str) -> pd.Series:
    return (frame["label"] == name) | (frame["method"] == name)


def _comparison(model: str, name: str, a: str, b: str, group: pd.DataFrame, samples: Samples) -> Comparison:
    ratio = group["metric"].iloc[0] in LOG_SCALE
    try:
        pooled = stats.pooled_seed_variance(samples.column(model, name, sorted(set(group["label"]))))
        difference = stats.compare(samples.get(model, name, a), samples.get(model, name, b), pooled)
    except NotComparable as error:
        return Comparison(model, name, a, b, None, str(error), ratio)
    return Comparison(model, name, a, b, difference, ratio=ratio)
