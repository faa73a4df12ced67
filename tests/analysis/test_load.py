"""Reading stores of SIMULATED records."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis.export import export_records
from analysis.load import load, predictions
from harness.record import from_json
from harness.store import Store
from methods.spec import UserError

from .simulate import N, failure, record, scores, small_store


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "runs")


def test_one_row_per_result_and_failure(store):
    frame = load(store)
    assert len(frame) == 13 and set(frame["column"]) == {"toy/a@heldout"}
    assert frame["status"].value_counts().to_dict() == {"done": 12, "diverged": 1}
    row = frame[frame["cell"] == "lora1"].iloc[0]
    assert (row["label"], row["model"], row["task"], row["seed"], row["n"], row["value"]) == ("lora", "toy", "toy/a", 1, N, 0.84)
    assert (row["method.r"], row["recipe.lr"], row["metric.accuracy"]) == (8, 0.001, 0.84)
    assert (row["trainable_method"], row["trainable_head"], row["total"], row["bytes_shipped"]) == (3000, 50, 100_000, 12_200)
    assert (row["tokens_per_second"], row["peak_memory"], row["flops"]) == (500.0, 10**9, 1e9)
    failed = frame[frame["status"] == "diverged"].iloc[0]
    assert (failed["label"], failed["seed"], failed["protocol"]) == ("bitfit", 2, "toy/a@heldout")
    assert failed["reason"] == "the loss is not finite"


def test_the_origin_of_the_learning_rate_is_kept(tmp_path):
    record(tmp_path, "a", "lora", 0, scores("a", 0, 0.8), origin="tuned")
    record(tmp_path, "b", "none", 0, scores("b", 0, 0.8))
    origins = load(tmp_path).set_index("cell")["origin"]
    assert origins["a"] == "tuned" and pd.isna(origins["b"])


def test_labels_shorten_hashes_and_commits(tmp_path):
    for cell, weights in (("a", "sha256:" + "0123456789abcdef" * 4), ("b", "hub:some/thing@" + "fedcba9876" * 4)):
        record(tmp_path, cell, "external", 0, scores("m", 0, 0.8), config={"weights": weights})
    labels = load(tmp_path).set_index("cell")["label"].to_dict()
    assert labels == {"a": "external (weights=sha256:0123456789ab)", "b": "external (weights=hub:some/thing@fedcba9876fe)"}


def test_labels_name_exactly_the_settings_that_differ(tmp_path):
    for cell, sparsity, retrain in (("a", 0.5, True), ("b", 0.5, False), ("c", 0.7, True)):
        config = {"sparsity": sparsity, "retrain": retrain, "scope": "layer", "targets": ["q", "v"]}
        record(tmp_path, cell, "magnitude", 0, scores("m", 0, 0.8), config=config)
    record(tmp_path, "d", "lora", 0, scores("lora", 0, 0.8), config={"r": 8}, recipe={"lr": 0.01})
    record(tmp_path, "e", "lora", 0, scores("lora", 1, 0.8), config={"r": 8}, recipe={"lr": 0.02})
    record(tmp_path, "f", "lora", 0, scores("lora", 1, 0.8), config={"r": 8}, recipe={"lr": 0.5}, protocol="toy/b@heldout", task="toy/b")
    record(tmp_path, "g", "dylora", 0, scores("lora", 1, 0.8), variant="rank=4")
    labels = load(tmp_path).set_index("cell")["label"].to_dict()
    assert labels == {
        "a": "magnitude (sparsity=0.5, retrain)", "b": "magnitude (sparsity=0.5, no retrain)", "c": "magnitude (sparsity=0.7, retrain)",
        "d": "lora (lr=0.01)", "e": "lora (lr=0.02)", "f": "lora", "g": "dylora [rank=4]",
    }  # fmt: skip


def test_labels_tell_cells_of_one_budget_apart_by_the_values_given_beside_it(tmp_path):
    for cell, method, budget, examples in (("a", "perp", "smoke", 128), ("b", "perp", "smoke", 512), ("c", "lora", "smoke", 128)):
        record(tmp_path, cell, method, 0, scores("m", 0, 0.8), budget=budget, examples=examples)
    record(tmp_path, "d", "lora", 0, scores("m", 0, 0.8), budget="short", examples=19200)
    labels = load(tmp_path).set_index("cell")["label"].to_dict()
    assert labels == {"a": "perp (examples=128)", "b": "perp (examples=512)", "c": "lora (budget=smoke)", "d": "lora (budget=short)"}


def test_keys_that_a_method_got_later_have_the_value_that_records_leave_out(tmp_path):
    record(tmp_path, "a", "magnitude", 0, scores("m", 0, 0.8), config={"sparsity": 0.5})
    record(tmp_path, "b", "magnitude", 0, scores("m", 0, 0.8), config={"sparsity": 0.5, "when": "gradual"})
    frame = load(tmp_path).set_index("cell")
    assert frame["method.when"].to_dict() == {"a": "one_shot", "b": "gradual"} and set(frame["method.cycles"]) == {3}
    assert frame["label"].to_dict() == {"a": "magnitude (when=one_shot)", "b": "magnitude (when=gradual)"}


def test_a_cell_that_was_measured_on_more_is_one_row(tmp_path):
    """Only the first was measured on `more`, where nothing tells it from others."""
    for cell, lr in (("d", 0.01), ("e", 0.02)):
        made = record(tmp_path, cell, "lora", 0, scores("lora", 0, 0.8), recipe={"lr": lr})
        if cell == "d":
            made.results.append(replace(made.results[0], protocol="more"))
            Store(tmp_path).write(made)
    frame = load(tmp_path)
    assert frame.groupby("protocol")["label"].unique().map(list).to_dict() == {
        "toy/a@heldout": ["lora (lr=0.01)", "lora (lr=0.02)"], "more": ["lora (lr=0.01)"],
    }  # fmt: skip


def test_equal_protocols_of_other_rows_are_other_columns(tmp_path):
    record(tmp_path, "a", "lora", 0, scores("a", 0, 0.8))
    record(tmp_path, "b", "full_ft", 0, scores("a", 0, 0.8), rows={"sha256": "beef" * 16})
    assert set(load(tmp_path)["column"]) == {"toy/a@heldout (rows 5eed5eed)", "toy/a@heldout (rows beefbeef)"}


def test_perplexities_of_other_tokenizers_or_contexts_are_other_columns(tmp_path):
    for cell, context, tokenizer in (("a", 1024, "aaaa"), ("b", 1024, "bbbb"), ("c", 512, "aaaa"), ("d", 1024, "")):
        protocol = f"wikitext2@ppl-{context}"
        record(tmp_path, cell, "none", 0, scores("a", 0, 0.8), protocol=protocol, tokenizer=tokenizer * 4, model=cell)
    columns = load(tmp_path).set_index("cell")["column"].to_dict()
    assert columns == {
        "a": "wikitext2@ppl-1024 (tokenizer aaaaaaaa)", "b": "wikitext2@ppl-1024 (tokenizer bbbbbbbb)",
        "c": "wikitext2@ppl-512", "d": "wikitext2@ppl-1024 (tokenizer unknown)",
    }  # fmt: skip


def test_a_damaged_record_is_named_and_left_out(store, caplog):
    (store / "lora1" / "record.json").write_text('{"schema": 1, "cell": "lo')
    frame = load(store)
    assert "lora1" not in set(frame["cell"]) and len(frame) == 12
    assert frame.attrs["damaged"] == ["lora1"]
    assert "lora1 is damaged" in caplog.text


@pytest.mark.parametrize(("content", "words"), [(None, "is missing"), (b"other", "has changed since it was measured")])
def test_a_record_whose_predictions_are_damaged_is_named_and_left_out(content, words, store, caplog):
    (file,) = (store / "lora1" / "evals").glob("*.parquet")
    Store(store).write(Store(store).record("lora1"))
    assert "lora1" in set(load(store)["cell"])
    file.write_bytes(content) if content else file.unlink()
    frame = load(store)
    assert "lora1" not in set(frame["cell"]) and frame.attrs["damaged"] == ["lora1"]
    assert f"lora1 is damaged and was not read: evals/{file.name} {words}" in caplog.text


def test_a_record_of_another_schema_is_named(store, caplog):
    path = store / "lora1" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    assert load(store).attrs["damaged"] == ["lora1"] and "schema 99" in caplog.text


def test_a_sweep_is_a_filter(store):
    record(store, "other", "lora", 7, scores("lora", 7, 0.8), sweep="else")
    assert set(load(store, "else")["cell"]) == {"other"}
    assert "other" not in set(load(store, "simulated")["cell"])
    with pytest.raises(UserError, match="no finished cells of sweep nope"):
        load(store, "nope")
    with pytest.raises(UserError, match="there is no store"):
        load(store / "nothing")


def test_a_failure_on_a_task_that_nobody_finished_has_no_protocol(store):
    failure(store, "lost", "lora", 0, task="toy/unseen")
    lost = load(store).set_index("cell").loc["lost"]
    assert pd.isna(lost["protocol"]) and lost["status"] == "diverged"


def test_predictions_are_read_back_and_a_missing_file_is_one_sentence(store):
    pd.testing.assert_frame_equal(predictions(store, "lora0", "evals/lora0.parquet"), scores("lora", 0, 0.85))
    (store / "lora0" / "evals" / "lora0.parquet").write_bytes(b"PAR1 truncated")
    for file in ("evals/lora0.parquet", "evals/none.parquet"):
        with pytest.raises(UserError, match="cannot be read"):
            predictions(store, "lora0", file)


def test_records_survive_json(store):
    made = record(store, "x", "lora", 9, scores("lora", 9, 0.5))
    assert from_json(json.loads(json.dumps(made.to_json()))) == made


def test_exported_records_load_the_same(store, tmp_path):
    out = tmp_path / "results"
    assert export_records(store, "simulated", out) == 13
    pd.testing.assert_frame_equal(load(out), load(store))
    for cell in ("lora0", "none0"):
        kept, original = (predictions(root, cell, f"evals/{cell}.parquet") for root in (out, store))
        pd.testing.assert_frame_equal(kept, original)
    assert "somewhere" not in (out / "bitfit2" / "config.json").read_text()
    assert json.loads((out / "bitfit2" / "outcome.json").read_text())["lines"] == ["the loss is not finite"]
    with pytest.raises(UserError, match="is not empty"):
        export_records(store, None, out)
    with pytest.raises(UserError, match="no records of sweep nope"):
        export_records(store, "nope", tmp_path / "other")


def test_sizes_of_equal_numbers_are_not_settings(tmp_path):
    record(tmp_path, "a", "lora", 0, scores("a", 0, 0.8), config={"alpha": 16})
    record(tmp_path, "b", "lora", 1, scores("a", 1, 0.8), config={"alpha": 16.0})
    assert set(load(tmp_path)["label"]) == {"lora"}
    assert np.isclose(load(tmp_path)["value"], 0.8).all()
