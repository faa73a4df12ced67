"""What the reference sweeps must show; `make accept` remakes their records in sweeps/results/ before this runs."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.compare import Samples
from analysis.load import load
from analysis.stats import compare, minimum_detectable_difference, pooled_seed_variance
from harness.record import Record
from harness.store import Store

RESULTS = Path(__file__).resolve().parents[2] / "sweeps" / "results"
pytestmark = pytest.mark.accept


def main_rows(sweep: str) -> pd.DataFrame:
    """Rows of the selected checkpoints."""
    frame = load(RESULTS / sweep, sweep)
    return frame[frame["variant"] == "main"]


def records(sweep: str) -> list[Record]:
    """All committed records of a sweep."""
    return list(Store(RESULTS / sweep).records())


@pytest.fixture(scope="module")
def column() -> dict:
    frame = main_rows("first_table")
    samples = Samples(frame, RESULTS / "first_table")
    (name,) = frame["column"].unique()
    return {label: samples.get("minilm", name, label) for label in frame["label"].unique()}


def test_fine_tuning_learns_and_beats_the_probe_by_more_than_can_be_missed(column: dict) -> None:
    full, lora, probe = (column[label].values.mean() for label in ("full_ft", "lora", "linear_probe"))
    smallest = minimum_detectable_difference(list(column.values()), pooled_seed_variance(list(column.values())))
    assert full >= 0.85
    assert lora >= 0.82
    assert 0.68 <= probe <= 0.78
    assert min(full, lora) - probe > smallest


def test_retrained_magnitude_is_not_worse_than_full_fine_tuning_by_what_can_be_detected(column: dict) -> None:
    pooled = pooled_seed_variance(list(column.values()))
    found = compare(column["magnitude"], column["full_ft"], pooled)
    assert found.low > -minimum_detectable_difference(list(column.values()), pooled)
    assert (found.seeds, found.examples) == (3, 872)


def test_half_of_the_prunable_weights_are_exactly_zero() -> None:
    for record in records("first_table"):
        counts = record.costs["nonzero"]
        assert counts["prunable"]["total"] == 6 * 12 * 384 * 384
        if record.identity["method"]["name"] == "magnitude":
            assert counts["prunable"]["nonzero"] == counts["prunable"]["total"] // 2


def test_pruning_half_of_smollm2_by_magnitude_triples_its_perplexity_at_least() -> None:
    frame = main_rows("first_lm")
    values = frame[frame["protocol"] == "wikitext2@ppl-1024[:24]"].set_index("method")["value"]
    assert values["magnitude"] >= 3 * values["none"]


def test_zero_shot_accuracy_falls_with_an_interval_below_zero() -> None:
    frame = main_rows("first_lm")
    samples = Samples(frame, RESULTS / "first_lm")
    for column in ("piqa@loglikelihood[:300]", "arc_easy@loglikelihood[:300]", "hellaswag@loglikelihood[:300]"):
        labels = frame[frame["column"] == column].set_index("method")["label"]
        pruned, dense = (samples.get("smollm2_135m", column, labels[m]) for m in ("magnitude", "none"))
        found = compare(pruned, dense, None)
        assert found.high < 0
        assert found.examples == 300


def test_after_fine_tuning_the_answers_are_answers_on_all_eight_tasks() -> None:
    frame = main_rows("commonsense_sft")
    generated = frame[frame["protocol"].str.contains("@generate") & (frame["method"] == "lora")]
    assert len(generated) == 8
    assert (generated["metric.invalid"] < 0.05).all()


def test_arithmetic_on_unseen_pairs_is_learnt_from_scratch() -> None:
    frame = main_rows("toy_arithmetic")
    (easiest,) = frame[frame["protocol"].str.startswith("toy/arithmetic-1@")].itertuples()
    assert easiest.value >= 0.9
    assert easiest.total <= 3_000_000
    assert len(frame) == 3


def test_the_generated_tasks_are_learnt() -> None:
    values = main_rows("toy_tasks").set_index("task")["value"]
    assert all(values[f"toy/{task}"] > 0.9 for task in ("sentiment", "entailment", "similarity", "choice"))
    assert values["toy/corpus"] < 2
