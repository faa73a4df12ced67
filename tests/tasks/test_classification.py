"""Rows of each protocol, the encoding, and an evaluation that depends on neither batch nor mode."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.classification import DATASETS, Classification
from tasks.hashing import content_hash
from tasks.spec import ClassificationConfig

METRIC = {"glue/cola": "matthews", "glue/stsb": "pearson", "toy/similarity": "pearson"}


def config(dataset="glue/sst2", **changes):
    values = {
        "name": dataset, "kind": "classification", "dataset": dataset, "metric": METRIC.get(dataset, "accuracy"),
        "rows": "official", "selection": "last", "max_length": 128, "limit": None, "version": 1,
    }  # fmt: skip
    return ClassificationConfig(**values | changes)


def sentences(n, start=0, labels=2):
    """Sentences of very different lengths, so that batches need padding."""
    texts = [f"{i} " + "good film " * (i * 7 % 23) for i in range(start, start + n)]
    return Dataset.from_dict({"sentence": texts, "label": [i % labels for i in range(n)], "idx": list(range(n))})


def pairs(n, labels):
    return Dataset.from_dict(
        {"sentence1": [f"first {i}" for i in range(n)], "sentence2": [f"second {i}" for i in range(n)], "label": labels}
    )


@pytest.fixture
def sst2(memory):
    def build(train=200, dev=60, **changes):
        return Classification(config(**changes), memory(train=sentences(train), validation=sentences(dev, 10_000)))

    return build


def texts(rows):
    return rows.data["sentence"][:]


def test_heldout_rows_leave_train_and_are_the_same_for_every_cell(sst2):
    splits = sst2(selection="heldout").splits()
    assert {role: len(rows.data) for role, rows in splits.items()} == {"train": 180, "selection": 20, "evaluation": 60}
    assert not set(texts(splits["train"])) & set(texts(splits["selection"]))
    assert sorted(texts(splits["train"]) + texts(splits["selection"])) == sorted(sentences(200)["sentence"])
    assert texts(splits["selection"]) == texts(sst2(selection="heldout").splits()["selection"])
    assert splits["train"].split == "train minus heldout(seed 20240, 20 rows)"
    assert splits["selection"].split == "heldout(seed 20240, 20 rows) of train"
    assert splits["train"].sha256 == content_hash(pa.Table.from_pylist(list(splits["train"].data)))
    assert splits["train"].sha256 != content_hash(pa.Table.from_pylist(list(sentences(200))))


def test_heldout_takes_at_most_a_thousand_rows(sst2):
    splits = sst2(train=12_000, selection="heldout").splits()
    assert (len(splits["train"].data), len(splits["selection"].data)) == (11_000, 1_000)
    position = np.mean([int(text.split()[0]) for text in texts(splits["selection"])])
    assert 5_000 < position < 7_000  # drawn from all over train (mean 6,000, standard error about 100)


def test_dev_best_selects_on_the_evaluated_rows_and_last_selects_nothing(sst2):
    best, last = sst2(selection="dev_best").splits(), sst2(selection="last").splits()
    assert best["selection"] is best["evaluation"]
    assert set(last) == {"train", "evaluation"}
    assert len(last["train"].data) == 200


def test_val_split_divides_the_dev_rows_in_two(sst2):
    task = sst2(dev=60, rows="val-split")
    splits = task.splits()
    assert {role: len(rows.data) for role, rows in splits.items()} == {"train": 40, "evaluation": 20}
    assert sorted(texts(splits["train"]) + texts(splits["evaluation"])) == sorted(sentences(60, 10_000)["sentence"])
    assert splits["evaluation"].split == "evaluation(seed 20240, 20 rows) of validation"
    assert task.config.protocol() == "sst2@val-split"


def test_limit_keeps_the_first_rows_and_says_so(sst2):
    task = sst2(limit=7)
    rows = task.splits()["evaluation"]
    assert texts(rows) == sentences(7, 10_000)["sentence"][:] and rows.split == "validation[:7]"
    assert task.config.protocol() == "glue/sst2@last[:7]"


@pytest.mark.parametrize("bad", [-1, 2])
def test_labels_outside_the_classes_are_refused(memory, bad):
    rows = sentences(4).remove_columns("label").add_column("label", [0, 1, bad, 0])
    task = Classification(config(), memory(train=sentences(4), validation=rows))
    with pytest.raises(UserError, match=f"label {bad}; allowed: 0 to 1"):
        task.splits()


@pytest.mark.parametrize(("dataset", "metric"), [("glue/sst2", "f1"), ("glue/cola", "pearson"), ("glue/sst5", "accuracy")])
def test_unknown_dataset_or_metric_is_refused(dataset, metric):
    with pytest.raises(UserError, match="is not allowed; allowed:"):
        Classification(config(dataset, metric=metric), None)


def test_the_heads_of_the_nine_tasks():
    heads = {name: Classification(config(name), None).head for name in DATASETS if name.startswith("glue/")}
    assert len(heads) == 9
    assert {name: head.num_labels for name, head in heads.items() if head.num_labels != 2} == {"glue/mnli": 3, "glue/stsb": 1}
    assert [name for name, head in heads.items() if head.problem_type == "regression"] == ["glue/stsb"]


def test_pairs_are_encoded_as_pairs_and_cut(memory, byte_tokenizer):
    rows = pairs(3, [0, 1, 0])
    task = Classification(config("glue/rte", max_length=12), memory(train=rows, validation=rows))
    example = task.encode("train", byte_tokenizer)[1]
    assert example["input_ids"] == byte_tokenizer("first 1", "second 1", truncation=True, max_length=12)["input_ids"]
    assert len(example["input_ids"]) == 12 and example["labels"] == 1
    whole = Classification(config("glue/rte"), memory(train=rows, validation=rows)).encode("train", byte_tokenizer)[1]
    assert byte_tokenizer.decode(whole["input_ids"]) == "<s>first 1</s>second 1"
    assert set(whole) == {"labels", *byte_tokenizer("a")}


def test_regression_labels_are_floats_even_where_the_file_has_integers(memory, byte_tokenizer):
    rows = pairs(4, [0, 5, 3, 1])
    examples = Classification(config("glue/stsb"), memory(train=rows, validation=rows)).encode("train", byte_tokenizer)
    assert [example["labels"] for example in examples] == [0.0, 5.0, 3.0, 1.0]
    assert all(type(example["labels"]) is float for example in examples)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_evaluation_equals_one_row_at_a_time_whatever_the_batch(sst2, tiny, byte_tokenizer, kind):
    task, model = sst2(dev=40), tiny(kind, "SequenceClassification", num_labels=2)
    rows = task.splits()["evaluation"].data
    model.eval()
    with torch.no_grad():
        logits = torch.cat(
            [model(**byte_tokenizer(row["sentence"], truncation=True, max_length=128, return_tensors="pt")).logits for row in rows]
        )
    labels = torch.tensor(rows["label"][:])
    expected = logits.softmax(-1)[torch.arange(40), labels].tolist()
    for batch in (1, 3, 32):
        evaluation = task.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=batch))
        assert evaluation.predictions["prediction"] == logits.argmax(-1).tolist()
        assert evaluation.predictions["probability"] == pytest.approx(expected, abs=1e-5)
        assert evaluation.metrics == {"accuracy": pytest.approx((logits.argmax(-1) == labels).double().mean().item())}
    assert np.mean(evaluation.predictions["score"]) == pytest.approx(evaluation.metrics["accuracy"])
    assert 0 < evaluation.metrics["accuracy"] < 1
    assert len(set(evaluation.predictions["example"])) == 40


def test_regression_scores_are_squared_errors(memory, tiny, byte_tokenizer):
    labels = [float(i % 6) for i in range(12)]
    rows = pairs(12, labels)
    task = Classification(config("glue/stsb"), memory(train=rows, validation=rows))
    evaluation = task.evaluate(tiny("bert", "SequenceClassification", num_labels=1), byte_tokenizer, "evaluation", EvalOptions())
    found = np.array(evaluation.predictions["prediction"])
    assert evaluation.predictions["score"] == pytest.approx(((found - labels) ** 2).tolist(), abs=1e-5)
    assert evaluation.metrics["pearson"] == pytest.approx(np.corrcoef(found, labels)[0, 1], abs=1e-6)
    assert set(evaluation.metrics) == {"pearson", "spearman", "pearson_spearman"} and evaluation.primary == "pearson"


def test_every_module_gets_its_own_mode_back_and_dropout_is_off(sst2, tiny, byte_tokenizer):
    task, model = sst2(dev=10), tiny("bert", "SequenceClassification", num_labels=2)
    model.train()
    model.bert.encoder.layer[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    runs = [task.evaluate(model, byte_tokenizer, "evaluation", EvalOptions()).predictions for _ in range(2)]
    assert runs[0] == runs[1]
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_autocast_is_used_when_asked_for(sst2, tiny, byte_tokenizer):
    task, model = sst2(dev=10), tiny("bert", "SequenceClassification", num_labels=2)
    exact = task.evaluate(model, byte_tokenizer, "evaluation", EvalOptions()).predictions["probability"]
    cast = task.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(autocast=torch.bfloat16)).predictions["probability"]
    assert cast != exact and cast == pytest.approx(exact, abs=0.1)


def test_a_diverged_model_has_no_accuracy(sst2, tiny, byte_tokenizer):
    model = tiny("bert", "SequenceClassification", num_labels=2)
    model.classifier.bias.data[0] = math.nan
    assert math.isnan(sst2(dev=10).evaluate(model, byte_tokenizer, "evaluation", EvalOptions()).metrics["accuracy"])


def test_a_tokenizer_without_padding_token_is_refused(sst2, tiny, byte_tokenizer):
    tokenizer = type(byte_tokenizer)(tokenizer_object=byte_tokenizer.backend_tokenizer, eos_token="</s>")
    with pytest.raises(UserError, match="no padding token"):
        sst2(dev=10).evaluate(tiny("llama", "SequenceClassification"), tokenizer, "evaluation", EvalOptions())


def test_content_hash_is_of_values_not_of_storage():
    table = pa.table({"label": [2, 5], "sentence": ["a", "é"]})
    wide = pa.table({"sentence": pa.chunked_array([["a"], ["é"]], pa.large_string()), "label": pa.array([2, 5], pa.int8())})
    assert content_hash(wide) == content_hash(table)
    others = [table.take([1, 0]), table.slice(0, 1), table.rename_columns(["label", "text"]), table.drop_columns("label")]
    assert len({content_hash(data) for data in [table, *others]}) == 5


def test_sizes_of_the_real_splits(folder):
    official = Classification(config(selection="heldout"), folder).splits()
    assert {role: len(rows.data) for role, rows in official.items()} == {"train": 66_349, "selection": 1_000, "evaluation": 872}
    demo = Classification(dataclasses.replace(config("glue/mrpc"), rows="val-split"), folder).splits()
    assert {role: len(rows.data) for role, rows in demo.items()} == {"train": 272, "evaluation": 136}


def test_half_of_dev_selects_and_the_other_half_is_reported(sst2):
    task = sst2(dev=61, selection="halfdev")
    splits = task.splits()
    assert {role: len(rows.data) for role, rows in splits.items()} == {"train": 200, "selection": 30, "evaluation": 31}
    assert sorted(texts(splits["selection"]) + texts(splits["evaluation"])) == sorted(sentences(61, 10_000)["sentence"])
    assert task.config.protocol() == "glue/sst2@halfdev"
    limited = sst2(dev=61, selection="halfdev", limit=5).splits()
    assert texts(limited["evaluation"]) == texts(splits["evaluation"])[:5] and len(limited["selection"].data) == 30


def test_a_cut_other_than_the_usual_one_is_part_of_the_id():
    assert config("glue/rte", max_length=512, limit=7).protocol() == "glue/rte@last-512[:7]"
    assert config("glue/rte", max_length=128).protocol() == "glue/rte@last"


def test_mismatched_genres_are_reported_beside_matched_and_never_selected_on(memory, tiny, byte_tokenizer):
    def rows(n, start):
        data = {"premise": [f"p {i}" for i in range(start, start + n)], "hypothesis": ["h"] * n, "label": [i % 3 for i in range(n)]}
        return Dataset.from_dict(data)

    held = memory(train=rows(30, 0), validation_matched=rows(9, 100), validation_mismatched=rows(12, 200))
    task = Classification(config("glue/mnli", selection="dev_best", limit=8), held)
    parts = task.parts()
    assert [part.protocol() for part in parts] == ["glue/mnli@dev_best[:8]", "glue/mnli-mismatched@dev_best[:8]"]
    first, further = (part.splits()["evaluation"] for part in parts)
    assert first.split == "validation_matched[:8]" and further.split == "validation_mismatched[:8]"
    assert set(parts[1].splits()) == {"evaluation"} and task.splits()["selection"] is task.splits()["evaluation"]
    assert set(task.config.reads()) == {"train", "validation_matched", "validation_mismatched"}
    found = parts[1].evaluate(tiny("bert", "SequenceClassification", num_labels=3), byte_tokenizer, "evaluation", EvalOptions())
    assert found.predictions["label"] == [i % 3 for i in range(8)]
    assert [part.protocol() for part in Classification(config("glue/rte"), None).parts()] == ["glue/rte@last"]
