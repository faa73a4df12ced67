"""Paired comparisons of the rows of a frame, from their per-example predictions."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
        row = ["model", "column", "label"]
        self.groups = dict(list(done.drop_duplicates([*row, "seed"]).groupby(row)))
        self.made: dict[tuple[str, str, str], Sample | NotComparable] = {}

    def get(self, model: str, column: str, label: str) -> Sample:
        """The sample; raises `NotComparable` where the predictions cannot be read or do not give the recorded metric."""
        key = (model, column, label)
        if key not in self.made:
            try:
                self.made[key] = self._derived(*key) if column in self.derived else self._make(self.groups[key], label)
            except (NotComparable, UserError) as error:
                self.made[key] = NotComparable(str(error))
        made = self.made[key]
        if isinstance(made, NotComparable):
            raise made
        return made

    def _make(self, group: pd.DataFrame, label: str) -> Sample:
        metric = group["metric"].iloc[0]
        places = {int(row[0]): row[1:] for row in zip(group["seed"], group["cell"], group["predictions"], strict=True)}
        deterministic = bool(group["deterministic"].all())
        try:
            made = stats.sample(label, metric, {seed: self._numbers(*place) for seed, place in places.items()}, deterministic)
        except KeyError:  # a metric of texts, which are not packed
            made = stats.sample(label, metric, {seed: predictions(self.store, *place) for seed, place in places.items()}, deterministic)
        for seed, value, recorded in zip(made.seeds, made.values, group["value"], strict=True):
            if abs(value - to_scale(metric, recorded)) > REPRODUCED:
                raise NotComparable(f"{label}: the predictions of seed {seed} give {metric} {value:.6f}, recorded is {recorded:.6f}")
        return made

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
