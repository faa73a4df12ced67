"""Columns that show what a cell changed on text or tasks that it was not trained on: the finished model minus the model as loaded.

Both were measured on the same examples (`forgetting` of the configuration), so a change is paired per document or example. Perplexities
are compared by their logarithms.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import stats
from analysis.load import DONE
from analysis.metrics import LOG_SCALE, to_scale
from analysis.stats import NotComparable, Sample

BEFORE = "before"
"""The variant of the model as it is loaded."""
MAIN = "main"


@dataclass(frozen=True)
class Change:
    """One such column."""

    name: str
    """For instance `wikitext2@ppl-1024 after-before`."""
    column: str
    """The column that both were measured under."""

    def sample(self, get: Callable[[str, str], Sample], label: str) -> Sample:
        """The change of a row; `get(column, label)` gives the samples of what was measured."""
        return change_sample(get(self.column, label), get(self.column, _before(label)))


def with_changes(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Change]]:
    """Add a row per (model, label, seed) for every column that something was measured under before training, too."""
    there = frame[(frame["variant"] == BEFORE) & (frame["status"] == DONE)]
    changes = [Change(f"{column} after-before", column) for column in dict.fromkeys(there["column"])]
    rows = [row for change in changes for row in _rows(frame, change)]
    if not rows:
        return frame, {}
    whole = pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
    whole.attrs = frame.attrs
    return whole, {change.name: change for change in changes}


def change_sample(after: Sample, before: Sample) -> Sample:
    """After minus before over the seeds that have both; `NotComparable` where the examples differ."""
    if after.examples != before.examples:
        raise NotComparable(f"{after.label} was measured on other examples before")
    seeds = [seed for seed in after.seeds if seed in before.seeds]
    if not seeds:
        raise NotComparable(f"{after.label} was not measured before training with any of its seeds")
    left, right = ([part.seeds.index(seed) for seed in seeds] for part in (after, before))
    return replace(
        after, seeds=tuple(seeds), values=after.values[left] - before.values[right], draws=after.draws[left] - before.draws[right],
        scores=after.scores[left] - before.scores[right],
    )  # fmt: skip


def interval(row: Sample, column: list[Sample]) -> tuple[float, float]:
    """The 95 % interval of a row's mean change, as that of a difference to a row that changes nothing."""
    zero = np.zeros((1, row.draws.shape[1]))
    still = replace(row, label="no change", seeds=row.seeds[:1], values=np.zeros(1), draws=zero, deterministic=True)
    found = stats.compare(row, still, stats.pooled_seed_variance(column))
    return found.low, found.high


def _before(label: str) -> str:
    return f"{label} [{BEFORE}]"


def _rows(frame: pd.DataFrame, change: Change) -> Iterator[dict]:
    own = frame[frame["column"] == change.column]
    before = own[(own["variant"] == BEFORE) & (own["status"] == DONE)].sort_values("cell").drop_duplicates(["model", "label", "seed"])
    values = {(row.model, row.label, row.seed): row.value for row in before.itertuples()}
    for _, after in own[own["variant"] == MAIN].iterrows():
        metric = str(after["metric"])
        row = dict(after) | {
            "column": change.name, "protocol": change.name, "predictions": None,
            "metric": f"log {metric}" if metric in LOG_SCALE else metric,
        }  # fmt: skip
        key = (after["model"], _before(after["label"]), after["seed"])
        if after["status"] == DONE and key in values:
            yield row | {"value": to_scale(metric, after["value"]) - to_scale(metric, values[key])}
        else:
            yield row | {"value": np.nan} | ({"status": "not measured before training"} if after["status"] == DONE else {})
