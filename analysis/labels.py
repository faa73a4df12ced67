"""Names of table rows: the method, and the settings in which rows of the same method differ."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")
"""Of a commit or a content hash, the first digits are shown."""


def add_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `label`, for instance `magnitude (sparsity=0.5, retrain)`.

    It names the method's configuration keys that differ within the frame; then the recipe values, training and calibration text, budget
    and precision that differ among cells of the same method, configuration, model and a protocol of theirs (a recipe may differ by task
    without being another row), of budgets with one name the values that differ; and the variant where it is not `main`.
    """
    frame = frame.copy()
    own = [key for key in frame if key.startswith("method.")]
    other = [key for key in frame if key.startswith(("recipe.", "corpus.", "calibration."))] + ["budget", "precision"]
    within = [key for key in frame if key.startswith("budget.")]
    by_method = frame.groupby("method").ngroup()
    labels = [_label(*pair) for pair in zip(frame["method"], _settings(frame, own, by_method, by_method >= 0), strict=True)]
    by_row = frame.groupby([pd.Series(labels, frame.index), "model", "protocol"], dropna=False).ngroup()
    # A failed cell knows only the recipe values that it was given, so it does not decide which ones differ.
    more = _settings(frame, other, by_row, frame["status"] == "done")
    values = _settings(frame, within, frame.groupby([by_row, "budget"], dropna=False).ngroup(), frame["status"] == "done")
    named = pd.Series([_extended(label, a + b) for label, a, b in zip(labels, more, values, strict=True)], frame.index, dtype=object)
    variants = frame["variant"].fillna("main")
    frame["label"] = named.where(variants == "main", named + " [" + variants.astype(str) + "]")
    return frame


def _settings(frame: pd.DataFrame, keys: Sequence[str], group: pd.Series, deciding: pd.Series) -> list[list[str]]:
    """Per row its values of the keys that differ among the deciding rows of a group of its cell's, as text, switches after values.

    All rows of a cell have the same keys: a cell that was measured on more protocols than others is one row of a table.
    """
    differ = frame.loc[deciding, list(keys)].groupby(group[deciding]).nunique(dropna=False) > 1
    used = {number: {key for key, yes in zip(keys, line, strict=True) if yes} for number, *line in differ.itertuples(name=None)}
    of_cell: dict[str, set[str]] = defaultdict(set)
    for cell, number in zip(frame["cell"], group, strict=True):
        of_cell[cell] |= used.get(number, set())
    ordered = {cell: [key for key in keys if key in some] for cell, some in of_cell.items()}
    values = {key: frame[key].tolist() for key in set().union(*used.values())}
    return [_texts({key: values[key][i] for key in ordered[cell]}) for i, cell in enumerate(frame["cell"])]


def _texts(settings: Mapping[str, Any]) -> list[str]:
    keys = sorted(settings, key=lambda key: isinstance(settings[key], bool | np.bool_))
    return [text for key in keys if (text := _setting(key.partition(".")[2] or key, settings[key]))]


def _setting(key: str, value: Any) -> str:
    """`key=value`; a switch that is on is its key, one that is off `no key`; a key that the cell does not have is left out."""
    if pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return key if value else f"no {key}"
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={HASH.sub(_head, str(value))}"


def _head(match: re.Match[str]) -> str:
    return match[1]


def _label(method: str, parts: list[str]) -> str:
    return f"{method} ({', '.join(parts)})" if parts else method


def _extended(label: str, parts: list[str]) -> str:
    if not parts:
        return label
    return f"{label[:-1]}, {', '.join(parts)})" if label.endswith(")") else f"{label} ({', '.join(parts)})"
