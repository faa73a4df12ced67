"""Matrices: what a method measured by layer and kind of weight, and how merged methods disturb each other."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.changes import MAIN
from analysis.load import DONE
from harness.store import Store
from methods.spec import UserError

LAYER = re.compile(r"\.(\d+)\.(.+)")
ENDS = (".weight", ".default")


@dataclass(frozen=True)
class Heat:
    """A matrix with names; NaN where there is nothing."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    """Shape (rows, columns)."""
    row_title: str = ""
    column_title: str = ""
    what: str = ""
    diverging: bool = False
    """Zero is the middle of the colours."""


def profiles(frame: pd.DataFrame, store: Path, measure: str | None = None) -> list[Heat]:
    """What the methods measured by layer (ranks, sparsities), mean over the seeds: a matrix per row of the table, model and task.

    `measure` is a key of the records' measures that maps names of weights to numbers; default: all such keys. Raises `UserError` where
    there is none.
    """
    cells = frame[(frame["status"] == DONE) & (frame["variant"] == MAIN)].drop_duplicates("cell")
    found: dict[tuple[str, str], list[pd.DataFrame]] = {}
    known: set[str] = set()
    for row in cells.itertuples():
        for name, values in _by_weight(Store(store).record(row.cell).measures):
            known.add(name)
            if measure in (None, name):
                found.setdefault((f"{row.label}, {row.model}, {row.task}", name), []).append(_matrix(values))
    if not found:
        there = f"there are: {', '.join(sorted(known))}" if known else "none of these records has any"
        raise UserError(f"no measure{f' {measure}' if measure else ''} by layer; {there}")
    return [_heat(title, name, matrices) for (title, name), matrices in sorted(found.items())]


def _by_weight(measures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """The measures that map names of weights in numbered layers to numbers."""
    return [(name, values) for name, values in measures.items() if isinstance(values, dict) and values and _layered(values)]


def _layered(values: Mapping[str, Any]) -> bool:
    return all(LAYER.search(key) and isinstance(value, int | float) for key, value in values.items())


def _matrix(values: Mapping[str, float]) -> pd.DataFrame:
    """Kinds of weights x layers."""
    rows = []
    for name, value in values.items():
        layer, kind = LAYER.search(name).groups()
        for end in ENDS:
            kind = kind.removesuffix(end)
        rows.append((kind, int(layer), float(value)))
    return pd.DataFrame(rows, columns=["kind", "layer", "value"]).pivot(index="kind", columns="layer", values="value")


def _heat(title: str, name: str, matrices: list[pd.DataFrame]) -> Heat:
    mean = pd.concat(matrices).groupby(level=0).mean().sort_index(axis=1)
    seeds = "1 seed" if len(matrices) == 1 else f"mean of {len(matrices)} seeds"
    names = tuple(mean.index), tuple(map(str, mean.columns))
    return Heat(f"{title} ({seeds})", *names, mean.to_numpy(), "", "layer", name.replace("_", " "))


def interference(matrix: pd.DataFrame, what: str = "change of the row's score when the column is merged in") -> Heat:
    """A square matrix of methods (or tasks) by name; `UserError` if its names differ or its values are not numbers."""
    rows, columns = tuple(map(str, matrix.index)), tuple(map(str, matrix.columns))
    numbers = matrix.apply(pd.to_numeric, errors="coerce")
    if rows != columns or (numbers.isna() & matrix.notna()).to_numpy().any():
        raise UserError("an interference matrix has the same names on both sides, in one order, and numbers or nothing inside")
    return Heat("", rows, columns, numbers.to_numpy(dtype=float), "scored", "merged in", what, diverging=True)


def read_matrix(path: Path) -> pd.DataFrame:
    """A CSV file with names in its first row and column."""
    try:
        return pd.read_csv(path, index_col=0)
    except (OSError, ValueError) as error:
        raise UserError(f"--matrix {path} cannot be read ({error}); give a CSV file with names in the first row and column") from error
