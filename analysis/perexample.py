"""Per-example correctness of results, packed, so that a page can show where two methods differ."""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import DONE, predictions
from analysis.packed import Packed

ANSWERS = ("extracted", "prediction", "prediction_norm")
"""Columns of predictions that hold what the model answered, the first that there is."""
DETAILED = 2_000
"""Examples up to which answers (or scores that are not 0 and 1) are kept beside correctness."""
CHARACTERS = 80
"""Shown of an answer or label."""
FILES = 2_000
"""Files of predictions that are opened at most: each takes milliseconds. Beyond, only what the store's index holds is known."""

Columns = Mapping[str, Any]
"""Name -> values: a data frame, or arrays of equal length."""
Read = Callable[[str, str], Columns | None]
"""Cell id and file of predictions -> their columns; None where they are left out."""


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one column, in the order of every packed result of it."""

    keys: tuple[str, ...]
    labels: list[Any] | None
    """None where the predictions have no label, or there are too many."""


@dataclass(frozen=True)
class Answered:
    """One result on the examples of its column."""

    bits: str | None
    """Base64 of one bit an example, most significant first, 1 = right; None where scores are not all 0 or 1."""
    scores: list[float] | None
    answers: list[Any] | None


class Reader:
    """Reads predictions: few from their files, with texts; of many the numbers, from the index of the store where it has one."""

    def __init__(self, store: Path, results: int) -> None:
        self.store, self.left = store, FILES
        self.index = Packed(store) if results > FILES else None

    def __call__(self, cell: str, file: str) -> Columns | None:
        """The columns; None once `FILES` were opened and the index does not have them."""
        found = self.index.get(cell, file) if self.index else None
        if found is not None or not self.left:
            return found
        self.left -= 1
        return predictions(self.store, cell, file)


def with_predictions(frame: pd.DataFrame) -> pd.DataFrame:
    """The results of a frame that have predictions, one per row, column and seed, rows of a table together."""
    done = frame[(frame["status"] == DONE) & frame["predictions"].notna()]
    order = done.sort_values(["model", "label", "seed", "cell"])
    return order.drop_duplicates(["model", "label", "column", "seed"])


def answered(results: pd.DataFrame, read: Read) -> Iterator[tuple[str, ExampleSet, dict[tuple[str, str], Answered]]]:
    """Column by column of `with_predictions`: its name, its examples, and (cell, variant) -> result.

    Results on other examples than the first of their column are left out: they cannot be paired.
    """
    for column, own in results.groupby("column"):
        examples, found = _column(own, read)
        if examples:
            yield str(column), examples, found


def _column(used: pd.DataFrame, read: Read) -> tuple[ExampleSet | None, dict[tuple[str, str], Answered]]:
    examples, order, raw, found = None, None, None, {}
    for row in used.itertuples():
        table = read(row.cell, row.predictions)
        if table is None:
            continue
        own = [str(example) for example in table["example"]]
        if own != raw:
            keys, order, raw = *_ordered(own), own
        if examples is None:
            examples = ExampleSet(keys, _texts(table, ("label",), order))
        if keys == examples.keys:
            found[row.cell, row.variant] = _answered(table, order)
    return examples, found


def _ordered(examples: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Example ids with repeats numbered, sorted, and the order that sorts them."""
    series = pd.Series(examples)
    repeats = series.groupby(series).cumcount()
    keys = series.where(repeats == 0, series + "#" + repeats.astype(str)).to_numpy(dtype=str)
    order = np.argsort(keys, kind="stable")
    return tuple(keys[order].tolist()), order


def _answered(table: Columns, order: np.ndarray) -> Answered:
    scores = np.asarray(table["score"], dtype=float)[order]
    answers = _texts(table, ANSWERS, order)
    if np.isin(scores, (0.0, 1.0)).all():
        return Answered(base64.b64encode(np.packbits(scores.astype(bool)).tobytes()).decode(), None, answers)
    kept = len(scores) <= DETAILED and bool(np.isfinite(scores).all())
    return Answered(None, [float(f"{score:.4g}") for score in scores] if kept else None, answers)


def _texts(table: Columns, names: tuple[str, ...], order: np.ndarray) -> list[Any] | None:
    """The values of the first column that there is, in order: whole numbers, numbers in 4 digits, or shortened text."""
    name = next((name for name in names if name in table), None)
    if name is None or len(order) > DETAILED:
        return None
    return [_text(value) for value in np.asarray(table[name])[order].tolist()]


def _text(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}") if np.isfinite(value) else str(value)
    text = "" if value is None else str(value)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"
