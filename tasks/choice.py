"""Multiple choice by log-likelihood, zero-shot, as lm-eval 0.4.13 scores it."""

from functools import cached_property
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import scored_after
from tasks.forward import max_input
from tasks.hashing import example_hash
from tasks.likelihood import encode_pair, log_likelihoods
from tasks.metrics import compute
from tasks.rows import first
from tasks.spec import ChoiceConfig
from tasks.templates import TEMPLATES, Question


class Choice(Task):
    """The choice with the highest log-likelihood wins, the first one in a tie.

    `accuracy` sums over the continuation's tokens; `accuracy_norm` divides the sum by the choice's characters.
    """

    config: ChoiceConfig

    def __init__(self, config: ChoiceConfig, sources: Any) -> None:
        super().__init__(config, sources)
        name = config.dataset.partition(":")[0]
        choice("task.dataset", name, TEMPLATES)
        self.template = TEMPLATES[name]
        self.metrics = ("accuracy", "accuracy_norm") if self.template.normalised else ("accuracy",)
        choice("task.metric", config.metric, self.metrics)

    def splits(self) -> dict[str, Rows]:
        """`evaluation`: the first `limit` rows of the split; `train` where the task has a training form."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        config = self.config
        train = {"train": self.sources.rows(config.dataset, config.train)} if config.train else {}
        return train | {"evaluation": first(self.sources.rows(config.dataset, config.split), config.limit)}

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Context and right choice, with labels on the choice's tokens; what is too long for the tokenizer loses its left end.

        Raises `UserError` where the task is evaluated only.
        """
        if self.config.train is None:
            raise UserError(f"task={self.config.name} has no training form; use a method that does not train, for instance method=none")
        pairs = [encode_pair(tokenizer, q.contexts[q.gold], q.continuations[q.gold]) for q in self.questions(split)]
        return [scored_after(*pair, tokenizer.model_max_length) for pair in pairs]

    def questions(self, split: str) -> list[Question]:
        """The rows of a split in the form in which they are scored."""
        choice("split", split, self.splits())
        return [self.template.question(row) for row in self.splits()[split].data]

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """Accuracy over the rows of a split.

        `predictions` beside the usual columns: `loglikelihoods` (nats, one per choice), and `prediction_norm` where
        lm-eval reports a length-normalised accuracy. `score` is 1/0 by the primary metric.
        """
        questions = self.questions(split)
        values = self._scores(model, tokenizer, questions, options)
        labels = [question.gold for question in questions]
        by_metric = {"accuracy": [int(np.argmax(v)) for v in values]}
        columns: dict[str, list] = {"label": labels, "prediction": by_metric["accuracy"]}
        if self.template.normalised:
            normalised = [int(np.argmax(np.array(v) / q.lengths())) for v, q in zip(values, questions, strict=True)]
            by_metric["accuracy_norm"] = columns["prediction_norm"] = normalised
        flat = [value for row in values for value in row]
        metrics = {name: compute(["accuracy"], labels, found, flat)["accuracy"] for name, found in by_metric.items()}
        right = [float(a == b) for a, b in zip(by_metric[self.config.metric], labels, strict=True)]
        columns["example"] = [example_hash({"contexts": q.contexts, "continuations": q.continuations}) for q in questions]
        columns |= {"score": right, "loglikelihoods": values}
        return Evaluation(metrics, self.config.metric, higher_is_better=True, predictions=columns)

    @staticmethod
    def _scores(model: nn.Module, tokenizer: PreTrainedTokenizerBase, questions: list[Question], options: EvalOptions) -> list[list[float]]:
        """Log-likelihoods in nats, per question and choice."""
        pairs = [encode_pair(tokenizer, *texts) for q in questions for texts in zip(q.contexts, q.continuations, strict=True)]
        values = iter(log_likelihoods(model, pairs, max_input(model, tokenizer), options))
        return [[next(values) for _ in question.contexts] for question in questions]
