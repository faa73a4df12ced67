"""Per-example correctness of results, packed, so that a page can show where two methods differ."""

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import DONE

ANSWERS = ("extracted", "prediction", "prediction_norm")
"""Columns of predictions that hold what the model answered, the first that there is."""
DETAILED = 2_000
"""Examples up to which answers (or scores that are not 0 and 1) are kept beside correctness."""
CHARACTERS = 80
"""Shown of an answer or label."""
RESULTS = 2_000
"""Results whose predictions are read at most; reading a file takes milliseconds."""

Columns = Mapping[str, Any]
"""Name -> values: a data frame, or arrays of equal length."""
Read = Callable[[str, str], Columns]
"""Cell id and file of predictions -> their columns."""


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one column, in the order of every packed result of it."""

    keys: tuple[str, ...]
    labels: list[Any] | None
    """None where the predictions have no label, or there are too many."""


@dataclass(frozen=True)
class Packed:
    """One result on the examples of its column."""

    bits: str | None
    """Base64 of one bit an example, most significant first, 1 = right; None where scores are not all 0 or 1."""
    scores: list[float] | None
    answers: list[Any] | None


def packed(frame: pd.DataFrame, read: Read, most: int = RESULTS) -> Iterator[tuple[str, ExampleSet, dict[tuple[str, str], Packed]]]:
    """Column by column: its name, its examples, and (cell, variant) -> result; of the first models whose results are `most` at most.

    Results on other examples than the first of their column are left out: they cannot be paired.
    """
    done = frame[(frame["status"] == DONE) & frame["predictions"].notna()]
    once = done.sort_values(["seed", "cell"]).drop_duplicates(["model", "label", "column", "seed"])
    total = once.groupby(["column", "model"])["cell"].size().cumsum()
    few = once.set_index(["column", "model"], drop=False).loc[total.index[total <= most]]
    for column, used in few.groupby(few["column"].to_numpy()):
        yield (str(column), *_column(used, read))


def _column(used: pd.DataFrame, read: Read) -> tuple[ExampleSet, dict[tuple[str, str], Packed]]:
    examples, order, raw, found = None, None, None, {}
    for row in used.itertuples():
        table = read(row.cell, row.predictions)
        own = [str(example) for example in table["example"]]
        if own != raw:
            keys, order, raw = *_ordered(own), own
        if examples is None:
            examples = ExampleSet(keys, _texts(table, ("label",), order))
        if keys == examples.keys:
            found[row.cell, row.variant] = _packed(table, order)
    return examples, found


def _ordered(examples: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Example ids with repeats numbered, sorted, and the order that sorts them."""
    series = pd.Series(examples)
    repeats = series.groupby(series).cumcount()
    keys = series.where(repeats == 0, series + "#" + repeats.astype(str)).to_numpy(dtype=str)
    order = np.argsort(keys, kind="stable")
    return tuple(keys[order].tolist()), order


def _packed(table: Columns, order: np.ndarray) -> Packed:
    scores = np.asarray(table["score"], dtype=float)[order]
    answers = _texts(table, ANSWERS, order)
    if np.isin(scores, (0.0, 1.0)).all():
        return Packed(base64.b64encode(np.packbits(scores.astype(bool)).tobytes()).decode(), None, answers)
    kept = len(scores) <= DETAILED and bool(np.isfinite(scores).all())
    return Packed(None, [float(f"{score:.4g}") for score in scores] if kept else None, answers)


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
