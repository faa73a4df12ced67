"""Quality over a swept key, and learning curves: series of means with the spread over seeds as a band."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.changes import MAIN
from analysis.compare import one_per_seed
from analysis.labels import add_labels
from analysis.load import DONE
from analysis.metrics import LOG_SCALE
from analysis.plots.points import spread
from methods.spec import UserError

SELECTION = "selection"
"""The y of a search: the metric on the selection rows."""
WIDE = 20.0
"""Ratio of the largest to the smallest x from which a logarithmic axis is used."""


@dataclass(frozen=True)
class Stop:
    """One place of a series."""

    x: float
    mean: float
    low: float
    """Mean minus the sample standard deviation over the seeds; the mean itself for one seed."""
    high: float
    seeds: int


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    stops: tuple[Stop, ...]


@dataclass(frozen=True)
class Panel:
    """The lines of one model under one protocol (or of one quantity of the training)."""

    title: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    references: tuple[Series, ...] = ()
    """Rows without the swept key: level lines of one stop each."""
    log_x: bool = False
    log_y: bool = False
    left_out: tuple[str, ...] = ()
    """Rows without a value at a place, because a seed failed there."""


def swept(frame: pd.DataFrame, x: str, y: str | None = None, *, references: bool = False) -> list[Panel]:
    """A panel per model and protocol (of protocol `y`, or of the selection metric): each row over the key `x` of its configuration.

    With `references`, rows that do not have the key are level lines. Raises `UserError` where `x` is no number or nothing is swept.
    """
    frame = frame[(frame["variant"] == MAIN) & frame["column"].notna()].copy()
    if x not in frame or pd.to_numeric(frame[x], errors="coerce").isna().all():
        raise UserError(f"--x {x} is no numeric key of these records; there are: {', '.join(_numeric(frame))}")
    if y not in (None, SELECTION, *frame["column"]):
        raise UserError(f"--y {y} is in no record; there are: {SELECTION}, {', '.join(sorted(set(frame['column'])))}")
    frame["place"] = pd.to_numeric(frame[x], errors="coerce")
    frame = add_labels(frame.drop(columns=x))
    if y == SELECTION:
        frame = frame.drop_duplicates("cell").assign(column=SELECTION, metric=SELECTION, value=lambda own: own["selection"])
    elif y is not None:
        frame = frame[frame["column"] == y]
    groups = frame.groupby(["model", "column"])
    panels = [panel for (model, column), group in groups if (panel := _panel(f"{model}, {column}", x, group, references))]
    if not panels:
        raise UserError(f"no row has two values of {x}; there are: {', '.join(_numeric(frame))}")
    return panels


def _panel(title: str, x: str, group: pd.DataFrame, references: bool) -> Panel | None:
    series, left_out = [], []
    for label, rows in group[group["place"].notna()].groupby("label"):
        stops, failed = _stops(rows)
        left_out += [f"{label} at {place:g}" for place in failed]
        series += [Series(str(label), stops)] if stops else []
    if not any(len(line.stops) > 1 for line in series):
        return None
    level = [(label, _stops(rows.assign(place=0.0))[0]) for label, rows in group[group["place"].isna()].groupby("label")]
    lines = tuple(Series(str(label), stops) for label, stops in level if stops) if references else ()
    metric = str(group[group["status"] == DONE]["metric"].iloc[0])
    places = [stop.x for line in series for stop in line.stops]
    return Panel(title, x, metric, tuple(series), lines, _wide(places), metric in LOG_SCALE, tuple(left_out))


def _stops(rows: pd.DataFrame) -> tuple[tuple[Stop, ...], list[float]]:
    """The places where every seed finished, and those where not."""
    stops, failed = [], []
    for place, own in rows.groupby("place"):
        done = one_per_seed(own[(own["status"] == DONE) & own["value"].notna()])
        if not len(done) or len(done) < own["seed"].nunique():
            failed.append(float(place))
            continue
        value = spread(done["value"].tolist(), bool(done["deterministic"].all()))
        stops.append(Stop(float(place), value.mean, value.low, value.high, len(done)))
    return tuple(stops), failed


def _wide(places: list[float]) -> bool:
    return min(places) > 0 and max(places) / min(places) >= WIDE


def _numeric(frame: pd.DataFrame) -> list[str]:
    keys = [key for key in frame if key.startswith(("method.", "recipe."))]
    numbers = {key: pd.to_numeric(frame[key].map(lambda v: None if isinstance(v, bool) else v), errors="coerce") for key in keys}
    return sorted(key for key, values in numbers.items() if values.nunique() > 1)


def learning(frame: pd.DataFrame, store: Path) -> list[Panel]:
    """Per model and task: the training loss, then each selection metric, over the steps of all phases; means and spread over seeds.

    Raises `UserError` where no cell has a history (compact copies of records have none).
    """
    cells = frame[(frame["status"] == DONE) & (frame["variant"] == MAIN)].drop_duplicates("cell")
    found = [
        entry | {"label": row.label, "cell": row.cell, "where": f"{row.model}, {row.task}"}
        for row in cells.itertuples()
        for entry in _read(store, row)
    ]
    if not found:
        raise UserError(f"{store} has no histories (history.jsonl of the cells); give the store that the sweep was run in")
    panels = []
    for (where, quantity), own in pd.DataFrame(found).groupby(["where", "quantity"], sort=False):
        lines = tuple(Series(str(label), _over_seeds(rows)) for label, rows in own.groupby("label"))
        panels.append(Panel(str(where), "training step", str(quantity), lines))
    moving = [panel for panel in panels if any(len(line.stops) > 1 for line in panel.series)] or panels
    return sorted(moving, key=lambda panel: (panel.title, panel.y_title != "training loss"))


def _over_seeds(rows: pd.DataFrame) -> tuple[Stop, ...]:
    """The steps that every seed logged (an interrupted run has some of its own), or all where there is none."""
    every = rows.groupby("step")["cell"].transform("nunique") == rows["cell"].nunique()
    stops = []
    for step, own in (rows[every] if every.any() else rows).groupby("step"):
        value = spread(own["value"].tolist())
        stops.append(Stop(float(step), value.mean, value.low, value.high, len(own)))
    return tuple(stops)


def _read(store: Path, row: Any) -> Iterator[dict[str, Any]]:
    """Entries of a cell's history: quantity, step counted over all phases, value; the later of two entries of one step."""
    path = store / row.cell / "history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    steps = _totals(lines)
    kept: dict[tuple[str, int], float] = {}
    for line in lines:
        for key, value in line.items():
            quantity = "training loss" if key == "loss" else key if key.startswith("selection/") else None
            if quantity and value is not None:
                kept[quantity, steps[line["phase"]] + line["step"]] = value
    yield from ({"quantity": quantity, "step": step, "value": value} for (quantity, step), value in sorted(kept.items()))


def _totals(lines: list[Mapping[str, Any]]) -> dict[str, int]:
    """Steps that were made before each phase."""
    longest: dict[str, int] = {}
    for line in lines:
        longest[line["phase"]] = max(longest.get(line["phase"], 0), line["step"])
    before, total = {}, 0
    for phase, steps in longest.items():
        before[phase] = total
        total += steps
    return before
