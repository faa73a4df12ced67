"""The intrinsic dimension from records: means over seeds, the best learning rate of each d, and what is left out."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import cli, source
from analysis.d90 import d90

CELL = {"status": "done", "variant": "main", "higher_is_better": True, "model": "minilm", "column": "glue/sst2@last", "recipe.lr": 1e-2}


def rows(method: str, values: list[float], **changes: Any) -> list[dict[str, Any]]:
    """A record per seed."""
    return [{**CELL, "method": method, "value": value, "seed": seed, **changes} for seed, value in enumerate(values)]


def subspace(d: int, *values: float, said: bool = True, **changes: Any) -> list[dict[str, Any]]:
    kind = {"method.d": d, "method.projection": "fastfood", "method.said": said}
    return rows("intrinsic_dim", list(values), **kind, **changes)


FRAME = pd.DataFrame(
    [
        *rows("full_ft", [0.9, 1.1]),
        *subspace(10, 0.95, 0.81),  # 0.88 on average
        *subspace(50, 0.5, 0.5),
        *subspace(50, 0.89, 0.93, **{"recipe.lr": 1e-1}),
        *subspace(100, 1.0, 1.0),
        *subspace(10, 0.99, said=False, status="oom"),
        *subspace(100, 0.6, said=False),
        *subspace(10, 1.0, model="elsewhere"),  # full fine-tuning is missing there
    ]
)


def test_the_smallest_d_by_mean_and_best_learning_rate() -> None:
    found = d90(FRAME)
    assert found["method.said"].tolist() == [False, True]
    assert found["full"].tolist() == pytest.approx([1.0, 1.0]) and found["needed"].tolist() == pytest.approx([0.9, 0.9])
    assert pd.isna(found["d90"][0]) and found["d90"][1] == 50


def test_the_command_prints_it_or_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(source, "load", lambda store, sweep, where: FRAME)
    assert cli.main(["d90", "intrinsic_dim", "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "0.900" in shown and "50" in shown
    monkeypatch.setattr(source, "load", lambda store, sweep, where: FRAME[FRAME["method"] == "full_ft"])
    assert cli.main(["d90", "--store", str(tmp_path)]) == 2
    assert "intrinsic_dim" in capsys.readouterr().err


def test_a_store_without_subspaces_has_no_columns_for_them() -> None:
    assert d90(FRAME[FRAME["method"] == "full_ft"].dropna(axis=1)).empty
