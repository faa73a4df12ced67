"""Names of table rows: the method, and the settings in which rows of the same method differ."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{28,52}\b")
"""Of a commit or a content hash, the first digits are shown."""


def add_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `label`, for instance `magnitude (sparsity=0.5, retrain)`.

    It names the method's configuration keys that differ within the frame; then the recipe values, training and calibration text, budget
    and precision that differ among cells of the same method, configuration, model and protocol (a recipe may differ by task without
    being another row); and the variant where it is not `main`.
    """
    frame = frame.copy()
    labels = pd.Series("", index=frame.index, dtype=object)
    for method, group in frame.groupby("method"):
        own = [key for key in frame if key.startswith("method.") and _differs(group[key])]
        settings = group.apply(lambda row, own=own: _settings(row, own), axis=1)
        labels[group.index] = [_label(method, parts) for parts in settings]
    other = [key for key in frame if key.startswith(("recipe.", "corpus.", "calibration."))] + ["budget", "precision"]
    for _, group in frame.groupby([labels, "model", "protocol"], dropna=False):
        # A failed cell knows only the recipe values that it was given, so it does not decide which ones differ.
        keys = [key for key in other if _differs(group[group["status"] == "done"][key])]
        if keys:
            labels[group.index] = [_extended(labels[i], _settings(row, keys)) for i, row in group.iterrows()]
    variants = frame["variant"].fillna("main")
    frame["label"] = labels.where(variants == "main", labels + " [" + variants.astype(str) + "]")
    return frame


def _differs(values: pd.Series) -> bool:
    return values.nunique(dropna=False) > 1


def _settings(row: pd.Series, keys: Iterable[str]) -> list[str]:
    """The settings as text, switches after values."""
    keys = sorted(keys, key=lambda key: isinstance(row[key], bool | np.bool_))
    return [text for key in keys if (text := _setting(key.partition(".")[2] or key, row[key]))]


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
