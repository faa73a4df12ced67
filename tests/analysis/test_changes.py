"""Columns of what training changed (`forgetting`), on SIMULATED records."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.formats import markdown, plain
from analysis.layout import Layout
from analysis.load import load
from analysis.page import page
from analysis.tables import CHANGES, Table, table
from harness.record import Result
from harness.store import Store

from .simulate import ROWS, record, scores

COLUMN = "wikitext2@ppl-64 after-before"
BASE = np.random.default_rng(0).normal(3, 0.3, 60)
TOKENS = 40 + np.arange(60)


def windows(nll: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"example": [f"w{i}" for i in range(60)], "score": nll, "tokens": TOKENS})


def value(nll: np.ndarray) -> float:
    return float(np.exp(np.average(nll, weights=TOKENS)))


def put(store: Path, method: str, seed: int, after: np.ndarray, before: np.ndarray | None = BASE, **keys) -> None:
    """A record with both variants of the perplexity."""
    made = record(
        store, f"{method}{seed}", method, seed, windows(after), value=value(after), metric="perplexity", higher=False,
        protocol="wikitext2@ppl-64", **keys,
    )  # fmt: skip
    if before is not None:
        file = f"evals/{method}{seed}.before.parquet"
        windows(before).to_parquet(Store(store).folder(made.cell) / file)
        first = made.results[0]
        made.results.append(Result(**vars(first) | {"variant": "before", "metrics": {"perplexity": value(before)}, "predictions": file}))
        Store(store).write(made)


def changed(seed: int, size: float) -> np.ndarray:
    return BASE + size + np.random.default_rng(seed).normal(0, 0.05, 60)


def built(store: Path, **keys) -> Table:
    return table(load(store), store, Layout(), **keys)


def cell(made: Table, label: str):
    return next(row for row in made.rows if row.label == label).cells[COLUMN]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for seed in (0, 1, 2):
        put(tmp_path, "full_ft", seed, changed(seed, 0.3))
        put(tmp_path, "lora", seed, changed(seed + 9, 0.0))
    put(tmp_path, "none", 0, BASE, deterministic=True)
    return tmp_path


def test_the_change_is_the_difference_of_log_perplexities_per_seed(store):
    made = built(store)
    expected = [np.average(changed(seed, 0.3) - BASE, weights=TOKENS) for seed in (0, 1, 2)]
    found = cell(made, "full_ft")
    assert found.values == pytest.approx(expected, abs=1e-9) and found.interval[0] > 0.2
    column = next(c for c in made.columns if c.name == COLUMN)
    assert (column.metric, column.higher_is_better, column.examples) == ("log perplexity", False, 60)
    assert {row.label for row in made.rows} == {"full_ft", "lora", "none"} and CHANGES in made.footnotes


def test_a_model_that_was_not_trained_forgets_nothing(store):
    found = cell(built(store), "none")
    assert found.values == (0.0,) and found.interval == (0.0, 0.0)


def test_the_interval_is_paired_per_document(tmp_path):
    """For equal token counts the interval of one deterministic row is that of a mean: value +- 1.96 sd/sqrt(n) of the paired gaps."""
    after = changed(3, 0.02)
    global TOKENS
    kept, TOKENS = TOKENS, np.full(60, 50)
    try:
        put(tmp_path, "magnitude", 0, after, deterministic=True)
    finally:
        TOKENS = kept
    gaps = after - BASE
    low, high = cell(built(tmp_path), "magnitude").interval
    half = stats.norm.ppf(0.975) * gaps.std() / np.sqrt(60)
    assert (low + high) / 2 == pytest.approx(gaps.mean(), abs=1e-9) and (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert half < 0.3 * stats.norm.ppf(0.975) * BASE.std() / np.sqrt(60)


def test_accuracy_changes_are_plain_differences(tmp_path):
    for seed in (0, 1):
        made = record(tmp_path, f"lora{seed}", "lora", seed, scores("lora", seed, 0.6), protocol="piqa@loglikelihood")
        file = f"evals/{made.cell}.before.parquet"
        scores("lora", 7, 0.7).to_parquet(Store(tmp_path).folder(made.cell) / file)
        made.results.append(Result(**vars(made.results[0]) | {"variant": "before", "metrics": {"accuracy": 0.7}, "predictions": file}))
        Store(tmp_path).write(made)
    row = built(tmp_path).rows[0].cells["piqa@loglikelihood after-before"]
    assert row.values == pytest.approx((-0.1, -0.1)) and row.interval[0] < -0.1 < row.interval[1]


def test_a_row_without_a_measurement_before_says_so(store):
    put(store, "bitfit", 0, changed(5, 0.1), before=None)
    made = built(store)
    assert cell(made, "bitfit").missing == "not measured before training" and not cell(made, "bitfit").values
    assert f"bitfit, toy, {COLUMN}: not measured before training" in made.footnotes
    assert made.rows[0].cells["wikitext2@ppl-64"].values


def test_every_format_shows_it_and_variants_show_the_rows_before(store):
    made = built(store)
    low, high = cell(made, "lora").interval
    text = f"[{low:+.3f}, {high:+.3f}] (3)"
    assert text in plain(made) and text.replace("[", "\\[").replace("]", "\\]") in markdown(made) and text in page(made)
    assert {row.label for row in built(store, before=True).rows} >= {"lora", "lora [before]"}


def test_other_examples_before_are_not_compared(tmp_path):
    put(tmp_path, "lora", 0, changed(1, 0.1))
    made = Store(tmp_path).record("lora0")
    frame = windows(BASE).assign(example=[f"other{i}" for i in range(60)])
    frame.to_parquet(tmp_path / "lora0" / "evals" / "lora0.before.parquet")
    made.results[1].rows = ROWS
    Store(tmp_path).write(made)
    assert cell(built(tmp_path), "lora").interval is None
