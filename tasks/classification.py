"""GLUE as sequence classification or regression with a head, for encoders and decoders (Wang et al. 2018, arXiv 1804.07461)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks.base import EvalOptions, Evaluation, Head, Rows, Task
from tasks.forward import batches, measuring
from tasks.hashing import example_hash
from tasks.metrics import compute
from tasks.rows import divide, first
from tasks.spec import ClassificationConfig, dev_splits

HELDOUT_ROWS = 1000
"""Selection rows taken from train at most; a tenth of train where that is less."""


@dataclass(frozen=True)
class Columns:
    """How one dataset is laid out on the hub."""

    texts: tuple[str, ...]
    """One column, or the two of a pair in the order of the encoding."""
    metrics: tuple[str, ...] = ("accuracy",)
    labels: int = 2
    """Classes; 1 = regression."""

    @property
    def regression(self) -> bool:
        """Labels are numbers from 0 to 5."""
        return self.labels == 1


PAIR = ("sentence1", "sentence2")
DATASETS = {
    "glue/cola": Columns(("sentence",), ("matthews", "accuracy")),
    "glue/sst2": Columns(("sentence",)),
    "glue/mrpc": Columns(PAIR, ("accuracy", "f1")),
    "glue/stsb": Columns(PAIR, ("pearson", "spearman", "pearson_spearman"), labels=1),
    "glue/qqp": Columns(("question1", "question2"), ("accuracy", "f1")),
    "glue/mnli": Columns(("premise", "hypothesis"), labels=3),
    "glue/qnli": Columns(("question", "sentence")),
    "glue/rte": Columns(PAIR),
    "glue/wnli": Columns(PAIR),
    "toy/sentiment": Columns(("sentence",)),
    "toy/entailment": Columns(PAIR),
    "toy/similarity": Columns(PAIR, ("pearson", "spearman", "pearson_spearman"), labels=1),
}


def columns_of(dataset: str, metric: str) -> Columns:
    """The layout of a dataset; `UserError` where it has none here or does not report the metric."""
    choice("task.dataset", dataset.partition(":")[0], DATASETS)
    found = DATASETS[dataset.partition(":")[0]]
    choice("task.metric", metric, found.metrics)
    return found


def read(sources: Any, dataset: str, split: str, columns: Columns) -> Rows:
    """A split with its labels checked (hidden test labels are -1 on the hub)."""
    rows = sources.rows(dataset, split)
    values = set(rows.data["label"][:])  # iterating over a column itself is 200 times slower
    bad = {v for v in values if not (0 <= v <= 5 if columns.regression else v in range(columns.labels))}
    if bad:
        allowed = "0 to 5" if columns.regression else f"0 to {columns.labels - 1}"
        raise UserError(
            f"{rows.dataset} {split} has the label {bad.pop()}; allowed: {allowed} (hidden test labels are -1: use another split)"
        )
    return rows


def chosen_by(rule: str, train: Rows, dev: Rows, limit: int | None) -> dict[str, Rows]:
    """Rows by role under a selection rule: `train`, `evaluation` (the first `limit` of dev, or of one half) and `selection` if any."""
    if rule == "halfdev":
        selection, dev = divide(dev, len(dev.data) // 2, "half")
    evaluation = first(dev, limit)
    if rule == "heldout":
        selection, train = divide(train, min(HELDOUT_ROWS, max(1, len(train.data) // 10)), "heldout")
    if rule == "dev_best":
        selection = evaluation
    return {"train": train, "evaluation": evaluation} | ({} if rule == "last" else {"selection": selection})


class Classification(Task):
    """A GLUE task. A pair is one input, joined the tokenizer's own way; a decoder's head reads the last token."""

    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, sources: Any) -> None:
        super().__init__(config, sources)
        self.columns = columns_of(config.dataset, config.metric)
        self.regression = self.columns.regression
        self.head = Head(self.columns.labels, "regression" if self.regression else "single_label_classification")
        self._encoded: dict[str, tuple[PreTrainedTokenizerBase, list[dict[str, Any]]]] = {}

    def splits(self) -> dict[str, Rows]:
        """`train` and `evaluation`, disjoint; `selection` = rows taken out of train, or the evaluation rows (`dev_best`)."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        found = self._divided()
        return found | {"train": first(found["train"], self.config.train_rows)}

    def _divided(self) -> dict[str, Rows]:
        dev = self._read(dev_splits(self.config.dataset)[0])
        if self.config.rows == "val-split":
            evaluation, train = divide(dev, len(dev.data) // 3, "evaluation")
            return {"train": train, "evaluation": first(evaluation, self.config.limit)}
        return chosen_by(self.config.selection, self._read("train"), dev, self.config.limit)

    def _read(self, split: str) -> Rows:
        return read(self.sources, self.config.dataset, split, self.columns)

    def parts(self) -> list[Task]:
        """The dev rows that tables report, and each further dev set (MNLI's mismatched genres)."""
        further = dev_splits(self.config.dataset)[1:] if self.config.rows == "official" else ()
        return [self, *(FurtherDev(self.config, self.sources, split) for split in further)]

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Token ids (cut to `max_length`, not padded), whatever else the tokenizer gives, and `labels` (float for regression)."""
        known = self._encoded.get(split)
        if known is None or known[0] is not tokenizer:
            self._encoded[split] = (tokenizer, self._encode(self._rows(split), tokenizer))
        return self._encoded[split][1]

    def _rows(self, split: str) -> Rows:
        choice("split", split, self.splits())
        return self.splits()[split]

    def _encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        texts = [rows.data[column][:] for column in self.columns.texts]
        limit = min(self.config.max_length, tokenizer.model_max_length)
        encoded = tokenizer(*texts, truncation=True, max_length=limit)
        kind = float if self.regression else int
        return [
            {**{key: values[i] for key, values in encoded.items()}, "labels": kind(label)} for i, label in enumerate(rows.data["label"][:])
        ]

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """The dataset's metrics over the rows of a split.

        `predictions` beside the usual columns: `probability` of the true label (classification alone). `score` is
        1/0 for a class, the squared error for regression.
        """
        examples = self.encode(split, tokenizer)
        logits = self._logits(model, tokenizer, examples, options)
        labels = torch.tensor([example["labels"] for example in examples])
        columns = self._regression(logits, labels) if self.regression else self._classes(logits, labels)
        documents = self._rows(split).data.select_columns(list(self.columns.texts))
        columns = {"example": [example_hash(row) for row in documents], "label": labels.tolist(), **columns}
        metrics = compute(self.columns.metrics, columns["label"], columns["prediction"], logits.flatten().numpy())
        return Evaluation(metrics, self.config.metric, higher_is_better=True, predictions=columns)

    def _logits(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: list[dict[str, Any]], options: EvalOptions) -> Tensor:
        """Logits (rows, labels) in float32 on the CPU, in the order of the rows."""
        if tokenizer.pad_token_id is None:
            raise UserError("the tokenizer has no padding token, which batches of classification need: set one in the model folder")
        result = torch.empty(len(examples), self.columns.labels)
        inputs = [{key: value for key, value in example.items() if key != "labels"} for example in examples]
        with measuring(model, options):
            for indices in batches([len(row["input_ids"]) for row in inputs], options.batch):
                batch = tokenizer.pad([inputs[i] for i in indices], padding_side="right", return_tensors="pt")
                result[indices] = self._own(model(**batch.to(options.device)).logits).float().cpu()
        return result

    def _own(self, logits: Tensor) -> Tensor:
        """The outputs of this task, out of all that the head has."""
        return logits

    @staticmethod
    def _regression(logits: Tensor, labels: Tensor) -> dict[str, list]:
        prediction = logits[:, 0]
        return {"prediction": prediction.tolist(), "score": (prediction - labels).square().tolist()}

    @staticmethod
    def _classes(logits: Tensor, labels: Tensor) -> dict[str, list]:
        prediction = logits.argmax(-1)
        probability = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
        return {
            "prediction": prediction.tolist(),
            "score": (prediction == labels).float().tolist(),
            "probability": probability.tolist(),
        }


class FurtherDev(Classification):
    """A second dev set of the same task, reported beside the first and never selected on."""

    def __init__(self, config: ClassificationConfig, sources: Any, split: str) -> None:
        super().__init__(config, sources)
        self.split = split

    def protocol(self) -> str:
        """`glue/mnli-mismatched@heldout`."""
        return self.config.reported(f"-{self.split.partition('_')[2]}")

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        return {"evaluation": first(self._read(self.split), self.config.limit)}
