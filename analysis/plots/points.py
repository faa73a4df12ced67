"""Rows of a table as points: quality against a cost with its Pareto front, and forgetting against gain."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analysis.changes import BEFORE
from analysis.compare import one_per_seed
from analysis.load import DONE
from methods.spec import UserError

CHANGE = " after-before"
"""How the names of columns of changes end (`analysis.changes`)."""


@dataclass(frozen=True)
class Cost:
    """What a row is paid with."""

    key: str
    """Column of the frame."""
    title: str


COSTS = {
    "parameters": Cost("trainable_method", "trainable parameters, head apart"),
    "shipped": Cost("bytes_shipped", "bytes that differ from the base model"),
    "bytes": Cost("bytes", "bytes of the exported weights"),
    "memory": Cost("peak_memory", "peak memory, bytes"),
    "seconds": Cost("seconds", "seconds per cell, evaluation included"),
}


@dataclass(frozen=True)
class Value:
    """A quantity over the seeds of a row."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One row: its mean over the seeds, with what is drawn as its bars."""

    label: str
    x: Value
    y: Value
    seeds: int
    deterministic: bool
    front: bool = False
    """On the Pareto front."""


@dataclass(frozen=True)
class Panel:
    """The points of one model under one protocol."""

    model: str
    column: str
    x_title: str
    y_title: str
    higher_is_better: bool
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()
    """Rows without a point: a seed failed, or there is no such cost."""


def pareto(frame: pd.DataFrame, cost: str) -> list[Panel]:
    """A panel per model and protocol; x: mean and range over the seeds, y: mean and standard deviation.

    A point is on the front if no other costs at most as much and is at least as good, one of the two strictly. Raises `UserError`
    where nothing has that cost.
    """
    frame = frame[frame["variant"] != BEFORE]
    panels = []
    for (model, column), group in frame.dropna(subset="column").groupby(["model", "column"]):
        done = group[group["status"] == DONE]
        points = [_point(str(label), rows, pd.to_numeric(rows[COSTS[cost].key])) for label, rows in _complete(group)]
        points = [point for point in points if point is not None]
        left_out = sorted(set(group["label"]) - {point.label for point in points})
        if points:
            higher, metric = bool(done["higher_is_better"].iloc[0]), str(done["metric"].iloc[0])
            panel = Panel(str(model), str(column), COSTS[cost].title, metric, higher, tuple(points), tuple(left_out))
            panels.append(with_front(panel))
    if not panels:
        raise UserError(f"no record has {COSTS[cost].title}; choose another --x: {', '.join(COSTS)}")
    return panels


def with_front(panel: Panel) -> Panel:
    """The panel with the points of its Pareto front marked (few x, much or little y)."""
    sign = 1 if panel.higher_is_better else -1
    best, front = -float("inf"), set()
    for x in sorted({point.x.mean for point in panel.points}):
        there = max(sign * point.y.mean for point in panel.points if point.x.mean == x)
        if there > best:
            best = there
            front |= {i for i, point in enumerate(panel.points) if point.x.mean == x and sign * point.y.mean == there}
    return replace(panel, points=tuple(replace(point, front=i in front) for i, point in enumerate(panel.points)))


def forgetting(frame: pd.DataFrame, forgot: str, gained: str) -> list[Panel]:
    """A panel per model: the change on what was not trained on (x) against the score or the change that training was for (y).

    `forgot` and `gained` are columns of the frame (`analysis.changes` makes `<protocol> after-before`). Raises `UserError` for others.
    """
    known = sorted(set(frame["column"].dropna()))
    for name in (forgot, gained):
        if name not in known:
            raise UserError(f"{name} is in no record; there are: {', '.join(known)}")
    frame = frame[frame["variant"] != BEFORE]
    panels = []
    for model, group in frame.groupby("model"):
        sides = [dict(_complete(group[group["column"] == name])) for name in (forgot, gained)]
        points = [_against(str(label), sides[0][label], sides[1][label]) for label in sides[0] if label in sides[1]]
        if points:
            metrics = [_metric(group[group["column"] == name]) for name in (forgot, gained)]
            higher = bool(group[(group["column"] == gained) & (group["status"] == DONE)]["higher_is_better"].iloc[0])
            titles = [f"{name}, {metric}" for name, metric in zip((forgot, gained), metrics, strict=True)]
            panels.append(Panel(str(model), gained, *titles, higher, tuple(points)))
    if not panels:
        raise UserError(f"no row was measured on both {forgot} and {gained}")
    return panels


def _metric(rows: pd.DataFrame) -> str:
    return str(rows[rows["status"] == DONE]["metric"].iloc[0])


def _complete(group: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Label and one finished record per seed, of the rows whose seeds all finished."""
    found = []
    for label, rows in group.groupby("label"):
        done = one_per_seed(rows[rows["status"] == DONE])
        if len(done) and len(done) == rows["seed"].nunique():
            found.append((str(label), done))
    return found


def _point(label: str, rows: pd.DataFrame, costs: pd.Series) -> Point | None:
    if costs.isna().any():
        return None
    deterministic = bool(rows["deterministic"].all())
    x = Value(float(costs.mean()), float(costs.min()), float(costs.max()))
    return Point(label, x, spread(rows["value"].tolist(), deterministic), len(rows), deterministic)


def _against(label: str, forgot: pd.DataFrame, gained: pd.DataFrame) -> Point:
    deterministic = bool(gained["deterministic"].all())
    values = [spread(rows["value"].tolist(), deterministic) for rows in (forgot, gained)]
    return Point(label, *values, len(gained), deterministic)


def spread(values: Sequence[float], deterministic: bool = False) -> Value:
    """Mean, and mean -+ the sample standard deviation; no bars for one value or a deterministic method."""
    mean = statistics.fmean(values)
    half = 0.0 if deterministic or len(values) < 2 else statistics.stdev(values)
    return Value(mean, mean - half, mean + half)
