"""Columns that are means over the tasks of a suite: as rows of the frame, and as samples for paired comparisons.

A mean is unweighted, over one protocol form (all that a protocol id says beside the task's name) and over rows that have every task;
a row that lacks one gets no mean but the reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pandas as pd

from analysis.load import DONE
from analysis.metrics import LOG_SCALE
from analysis.stats import DRAWS, NotComparable, Sample
from analysis.tuning import Tuning
from methods.spec import UserError

COSTS = (
    "trainable_method", "trainable_head", "total", "sparsity_prunable", "sparsity_all", "bytes", "bytes_shipped", "seconds",
    "tokens_per_second", "flops", "peak_memory", "inherited_flops", "inherited_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Mean:
    """One mean column."""

    name: str
    """For instance `commonsense_147k/commonsense8-mean@generate-whole-256-beam4-32[:200]`."""
    columns: tuple[str, ...]
    """The columns of its tasks."""
    tasks: tuple[str, ...]
    problem: str = ""
    """Why no row can have it."""

    def sample(self, get: Callable[[str, str], Sample], label: str) -> Sample:
        """The mean of a row; `get(column, label)` gives the samples of its tasks."""
        return mean_sample(label, [get(column, label) for column in self.columns])


@dataclass
class Means:
    """The frame with the rows of the means, and what was made."""

    frame: pd.DataFrame
    columns: dict[str, Mean] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def with_means(frame: pd.DataFrame, asked: Mapping[str, Sequence[str]]) -> Means:
    """Add a row per (model, label, seed) for every mean that is `asked` for: name -> tasks, or -> exact protocol ids.

    Tasks are named by the last part of a protocol's place (`boolq` of `commonsense_147k/boolq@...`); one column is made for each form
    in which at least one row was measured on all of them. Raises `UserError` where values of the tasks have no common scale.
    """
    made = Means(frame)
    for name, tasks in asked.items():
        found = [mean for mean in _forms(frame, name, tuple(tasks)) if _reaches(frame, mean, made.notes)]
        made.columns |= {mean.name: mean for mean in found}
    rows = [row for mean in made.columns.values() for row in _rows(frame, mean)]
    if rows:
        made.frame = pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
        made.frame.attrs = frame.attrs
    return made


def mean_sample(label: str, parts: Sequence[Sample]) -> Sample:
    """The sample of a mean from those of its tasks, over the seeds that all have.

    Tasks hold different examples, so their resamples are independent: each task's draws are shifted against the others', by as
    much for every row, which keeps rows paired.
    """
    seeds = [seed for seed in parts[0].seeds if all(seed in part.seeds for part in parts)]
    if not seeds:
        raise NotComparable(f"{label}: no seed was measured on every task")
    chosen = [[part.seeds.index(seed) for seed in seeds] for part in parts]
    shift = DRAWS // len(parts)
    values = np.mean([part.values[own] for part, own in zip(parts, chosen, strict=True)], axis=0)
    draws = np.mean([np.roll(part.draws[own], i * shift, axis=1) for i, (part, own) in enumerate(zip(parts, chosen, strict=True))], axis=0)
    examples = tuple(f"{i}/{example}" for i, part in enumerate(parts) for example in part.examples)
    unscored = np.full((len(seeds), 1), np.nan)
    return Sample(label, tuple(seeds), values, draws, examples, all(part.deterministic for part in parts), unscored)


def _forms(frame: pd.DataFrame, name: str, tasks: tuple[str, ...]) -> list[Mean]:
    """The means that a name stands for, one per form."""
    columns = frame[frame["status"] == DONE].groupby("protocol")["column"].unique()
    if all("@" in task for task in tasks):
        return [_mean(f"{name}-mean", tasks, [list(columns.get(task, ())) for task in tasks])]
    forms: dict[tuple[str, str], dict[str, list[str]]] = {}
    for protocol, own in columns.items():
        place, _, form = str(protocol).partition("@")
        prefix, slash, task = place.rpartition("/")
        if task in tasks:
            forms.setdefault((prefix + slash, form), {}).setdefault(task, []).extend(own)
    return [_mean(f"{prefix}{name}-mean@{form}", tasks, [found.get(task, []) for task in tasks]) for (prefix, form), found in forms.items()]


def _mean(name: str, tasks: tuple[str, ...], columns: list[list[str]]) -> Mean:
    if absent := [task for task, own in zip(tasks, columns, strict=True) if not own]:
        return Mean(name, (), tasks, f"no row was measured on {', '.join(absent)}")
    if mixed := [own for own in columns if len(own) > 1]:
        return Mean(name, (), tasks, f"{mixed[0][0]} and {mixed[0][1]} are not the same measurement")
    return Mean(name, tuple(own[0] for own in columns), tasks)


def _reaches(frame: pd.DataFrame, mean: Mean, notes: list[str]) -> bool:
    """Whether a row has the mean; else a note says why none has."""
    done = frame[(frame["status"] == DONE) & frame["column"].isin(mean.columns)]
    _check_scale(mean, done)
    complete = done.groupby(["model", "label", "seed"])["column"].nunique() == len(mean.columns)
    problem = mean.problem or ("" if complete.any() else "no row was measured on all of its tasks with one seed")
    metrics = done.drop_duplicates("column").set_index("column")["metric"]
    if problem:
        notes.append(f"{mean.name}: no mean, since {problem}")
    else:
        members = ", ".join(f"{column} ({metrics[column]})" for column in mean.columns)
        notes.append(f"{mean.name}: unweighted mean over {members}")
    return not problem


def _check_scale(mean: Mean, done: pd.DataFrame) -> None:
    wrong = done[done["metric"].isin(LOG_SCALE) | ~done["higher_is_better"].astype(bool)]
    if len(wrong):
        raise UserError(
            f"table.means: {mean.name} takes in {wrong['column'].iloc[0]}, whose {wrong['metric'].iloc[0]} is no score; leave it out"
        )


def _rows(frame: pd.DataFrame, mean: Mean) -> Iterator[dict]:
    members = frame[frame["column"].isin(mean.columns)]
    for _, group in members.groupby(["model", "label", "seed"]):
        done = group[group["status"] == DONE].sort_values("cell").drop_duplicates("column").set_index("column")
        lacking = [task for task, column in zip(mean.tasks, mean.columns, strict=True) if column not in done.index]
        yield _row(mean, _least_tuned(group), done, lacking)


def _least_tuned(group: pd.DataFrame) -> pd.Series:
    """The task whose learning rate says least for the mean: one that nobody searched for, else the first."""
    searched = group["origin"].map(lambda origin: pd.isna(origin) or Tuning(origin).chosen)
    return group.iloc[int(searched.argmin())]


def _row(mean: Mean, first: pd.Series, done: pd.DataFrame, lacking: list[str]) -> dict:
    """A row of the frame: that of a task, with what belongs to the mean in place of what is the task's."""
    metrics = sorted(set(done["metric"]))
    row = dict(first) | {"column": mean.name, "protocol": mean.name, "predictions": None, "metric": _metric(metrics)}
    if lacking:
        return row | {"status": f"without {', '.join(lacking)}", "reason": "", "value": np.nan}
    costs = {key: pd.to_numeric(done[key]).mean() for key in COSTS}
    return row | costs | {
        "status": DONE, "reason": "", "value": float(done.loc[list(mean.columns), "value"].mean()), "higher_is_better": True,
        "n": int(done["n"].sum()), "rows": _described(done), "tokenizer": "", "deterministic": bool(done["deterministic"].all()),
        "inherited": {},
    }  # fmt: skip


def _metric(metrics: list[str]) -> str:
    return f"mean {metrics[0]}" if len(metrics) == 1 else "mean"


def _described(done: pd.DataFrame) -> dict:
    blocks = done["rows"].tolist()
    content = sha256("".join(sorted(str(block.get("sha256")) for block in blocks)).encode()).hexdigest()
    names = ", ".join(dict.fromkeys(str(block.get("dataset")) for block in blocks))
    return {"dataset": names, "split": "several", "source": "several", "revision": "several", "sha256": content, "official": None}
