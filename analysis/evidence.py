"""What records say to a published number, or to a published comparison of two techniques; with the cells that say it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import stats
from analysis.changes import MAIN, with_changes
from analysis.compare import Comparison, Samples, one_per_seed
from analysis.layout import layout
from analysis.load import DONE
from analysis.means import with_means
from analysis.metrics import LOG_SCALE
from analysis.papers import Direction, Query
from analysis.stats import LEVEL, Difference, NotComparable

FAIR = (
    "task", "budget", "budget.examples", "precision", "corpus.source", "corpus.length", "calibration.source", "calibration.sequences",
    "calibration.length",
)  # fmt: skip
"""In what two rows must agree to be compared, where both have it."""


class NotAnsweredError(LookupError):
    """No record holds the number; the message says why."""


@dataclass(frozen=True)
class Found:
    """A published number as our records have it."""

    value: float
    """Mean or median over the seeds, in the units of the record."""
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """One paired comparison that answers a published one; the difference is better - worse as the paper names them."""

    comparison: Comparison
    cells: tuple[str, ...] = ()
    gain: Difference | None = None
    """How far the better side is above the worse one less the margin, larger is better; None where the two could not be compared, or
    where nobody knows how much a seed changes."""


class Evidence:
    """Records of a store (`analysis.load`): main variants, with the means and changes that their sweep's layout asks for."""

    def __init__(self, frame: pd.DataFrame, store: Path, sweep: str | None = None) -> None:
        sweeps = set(frame["sweep"].dropna())
        means = with_means(frame, layout(sweep or (sweeps.pop() if len(sweeps) == 1 else None)).means)
        whole, changes = with_changes(means.frame)
        self.samples = Samples(whole, store, means.columns | changes)
        self.frame = whole[whole["variant"] == MAIN]

    def value(self, query: Query) -> Found:
        """The number that a query asks for. Raises `NotAnsweredError` if no row, an incomplete one or more than one has it."""
        rows = self.frame[(self.frame["method"] == query.method) & (self.frame["model"] == query.model)]
        rows = rows[rows["protocol"] == query.protocol]
        rows = rows[_having(rows, dict(override.split("=", 1) for override in query.overrides or ()))]
        if query.budget is not None:
            rows = rows[rows["budget"] == query.budget]
        values = _metric(rows, query.metric)
        if values.isna().all():
            raise NotAnsweredError(f"no record of {query.method} on {query.model} under {query.protocol}")
        if len(names := sorted(set(rows["label"] + ", " + rows["column"].astype(str)))) > 1:
            raise NotAnsweredError(f"several rows answer: {'; '.join(names)}")
        done = one_per_seed(rows[(rows["status"] == DONE) & values.notna()])
        if len(done) < rows["seed"].nunique():
            raise NotAnsweredError(f"only {len(done)} of {rows['seed'].nunique()} seeds finished")
        return Found(float(values[done.index].agg(query.center)), tuple(done["cell"]))

    def answers(self, direction: Direction) -> list[Answer]:
        """Every comparison of this store that answers a published one, by model and column."""
        named = ((direction.better, direction.better_at), (direction.worse, direction.worse_at))
        better, worse = (dict(iter(_side(self.frame, *side, direction).groupby(["model", "column"]))) for side in named)
        return [answer for key in better if key in worse for answer in self._under(key, better[key], worse[key], direction)]

    def _under(self, key: tuple[str, str], better: pd.DataFrame, worse: pd.DataFrame, direction: Direction) -> Iterator[Answer]:
        unclear = set()
        for (a, left), (b, right) in product(better.groupby("label"), worse.groupby("label")):
            if a == b or not _agree(left, right, direction.equal or ()):
                continue
            sides = ((direction.better, _recipes(left, better)), (direction.worse, _recipes(right, worse)))
            several = [f"{method} has {n} recipes there" for method, n in sides if n > 1]
            if not several:
                yield self._answer(key, (str(a), left), (str(b), right), direction)
            elif (problem := f"{' and '.join(several)}, of which none is said to stand for it") not in unclear:
                unclear.add(problem)
                yield Answer(Comparison(*key, direction.better, direction.worse, None, problem))

    def _answer(self, key: tuple[str, str], a: tuple[str, pd.DataFrame], b: tuple[str, pd.DataFrame], direction: Direction) -> Answer:
        both = pd.concat([a[1], b[1]])
        metric, sign = both["metric"].iloc[0], 1.0 if both["higher_is_better"].iloc[0] else -1.0
        bare = Comparison(*key, a[0], b[0], None, ratio=metric in LOG_SCALE)
        if (both["status"] != DONE).any():
            return Answer(replace(bare, problem="not every seed finished"))
        try:
            group = self.frame[(self.frame["model"] == key[0]) & (self.frame["column"] == key[1])]
            pooled = stats.pooled_seed_variance(self.samples.column(*key, sorted(set(group["label"]))))
            left, right = self.samples.get(*key, a[0]), self.samples.get(*key, b[0])
            difference = stats.compare(left, right, pooled)
            lowered = replace(right, values=right.values - sign * direction.margin, draws=right.draws - sign * direction.margin)
            gain = stats.compare(left, lowered, pooled)
        except NotComparable as error:
            return Answer(replace(bare, problem=str(error)))
        known = pooled is not None or (left.deterministic and right.deterministic)
        return Answer(replace(bare, difference=difference), tuple(sorted(set(both["cell"]))), _turned(gain, sign) if known else None)


def told(answers: Sequence[Answer]) -> list[int]:
    """For each answer 1 (the direction of the paper), -1 (the opposite) or 0 (cannot be told).

    Told is what Holm's correction over all answers to one claim leaves significant, and whose own interval excludes 0.
    """
    known = [answer.gain for answer in answers if answer.gain is not None]
    adjusted = iter(stats.holm([gain.p for gain in known]))
    return [0 if answer.gain is None else _sign(answer.gain, next(adjusted)) for answer in answers]


def _sign(gain: Difference, p: float) -> int:
    return 0 if p > 1 - LEVEL or gain.low <= 0 <= gain.high else int(np.sign(gain.value))


def _turned(gain: Difference, sign: float) -> Difference:
    low, high = sorted((sign * gain.low, sign * gain.high))
    return replace(gain, value=sign * gain.value, low=low, high=high)


def _metric(rows: pd.DataFrame, name: str) -> pd.Series:
    """The metric of each row: the primary one, the mean of it over tasks, or another that was recorded."""
    primary = rows["metric"].isin([name, f"mean {name}"])
    other = rows[f"metric.{name}"].where(rows["predictions"].notna()) if f"metric.{name}" in rows else np.nan
    return rows["value"].where(primary, other)


def _side(frame: pd.DataFrame, method: str, own: Mapping[str, Any] | None, direction: Direction) -> pd.DataFrame:
    rows = frame[(frame["method"] == method) & frame["column"].notna()]
    named = rows["column"].map(lambda name: any(fnmatchcase(str(name), pattern) for pattern in direction.columns)).astype(bool)
    rows = rows[named]
    return rows[_having(rows, {**(direction.at or {}), **(own or {})})]


def _having(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.Series:
    """Rows whose configuration has the wanted values; a key that no record has is had by none."""
    kept = pd.Series(True, index=rows.index)
    for key, value in wanted.items():
        allowed = value if isinstance(value, list) else [value]
        kept &= rows[key].map(lambda own, allowed=allowed: any(_same(own, one) for one in allowed)) if key in rows else False
    return kept.astype(bool)


def _same(own: Any, wanted: Any) -> bool:
    """Are a recorded value and a wanted one (perhaps text) the same setting? `0.5` and `\"0.5\"`, `False` and `false` are."""
    if isinstance(own, bool | np.bool_) or isinstance(wanted, bool):
        return str(own).lower() == str(wanted).lower()
    try:
        return float(own) == float(wanted)
    except (TypeError, ValueError):
        return str(own) == str(wanted)


def _agree(left: pd.DataFrame, right: pd.DataFrame, equal: Sequence[str]) -> bool:
    """Do two rows of a column share the keys of the claim, and what makes a comparison fair?"""
    if not all(key in left and _same(left[key].iloc[0], right[key].iloc[0]) for key in equal):
        return False
    pairs = [(left[key].iloc[0], right[key].iloc[0]) for key in FAIR if key in left]
    return all(pd.isna(a) or pd.isna(b) or a == b for a, b in pairs)


def _recipes(own: pd.DataFrame, side: pd.DataFrame) -> int:
    """How many rows have the configuration of this one, told apart by their recipes alone."""
    keys = [key for key in side if key.startswith("method.") or key in FAIR]
    first = own[keys].iloc[0]
    alike = (side[keys].eq(first) | (side[keys].isna() & first.isna())).all(axis=1)
    return side[alike]["label"].nunique()
