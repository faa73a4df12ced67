"""What a task is: rows with their provenance, an encoding for training, and an evaluation."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.spec import TaskConfig


@dataclass(frozen=True)
class Head:
    """The head a task needs on top of the backbone; a causal language-modelling task has none."""

    num_labels: int
    problem_type: str
    """`single_label_classification` or `regression`."""


@dataclass(frozen=True)
class Rows:
    """One split as it was found, with what a record needs to name it exactly."""

    data: Dataset
    source: str
    """Kind of place: `folder`, `assets` or `hub`."""
    dataset: str
    split: str
    revision: str
    """Hub commit, wheel name and version, or `local:<file>`."""
    sha256: str
    """Hash of the content (columns and values), the same wherever the rows came from."""
    official: bool | None = None
    """Whether the number of rows is the published one; None where it is not known."""
    whole: str = ""
    """Hash of the split that these rows are a part of; empty where they are all of it."""

    def describe(self) -> dict[str, Any]:
        """What the record keeps of these rows."""
        return {
            "dataset": self.dataset, "split": self.split, "rows": len(self.data),
            "source": self.source, "revision": self.revision, "sha256": self.sha256, "official": self.official,
        } | ({"whole": self.whole} if self.whole else {})  # fmt: skip


@dataclass(frozen=True)
class EvalOptions:
    """How a forward pass is made: batch size in rows, device, and the autocast dtype or None."""

    batch: int = 32
    device: str = "cpu"
    autocast: torch.dtype | None = None


@dataclass
class Evaluation:
    """Metrics (plain floats) and one entry per example in each column of `predictions`.

    `predictions` always has `example` (a hash of the document) and `score` (per-example contribution: 1/0 for
    accuracy, squared error for regression, mean negative log-likelihood in nats for perplexity); other columns
    are `label`, `prediction`, log-likelihoods, token counts.
    """

    metrics: dict[str, float]
    primary: str
    higher_is_better: bool
    predictions: dict[str, list] = field(default_factory=dict)
    tokenizer: str = ""
    """Hash of the tokenizer where the metrics count its tokens, so that they compare only under the same one; else empty."""


class Task(ABC):
    """A dataset with one evaluation protocol. Knows nothing of methods."""

    head: Head | None = None

    def __init__(self, config: TaskConfig, sources: Any) -> None:
        self.config = config
        self.sources = sources

    @abstractmethod
    def splits(self) -> dict[str, Rows]:
        """Rows by role: `train` and `selection` where the protocol has them, and `evaluation`; cached.

        A task of several parts has their rows under their names; `evaluation` is then in each part.
        """

    def attach(self, model: nn.Module) -> None:  # noqa: B027 (most tasks have nothing to teach)
        """Teach a model with this task's head, in place and once, what its batches hold beyond a model's usual arguments."""

    def parts(self) -> list["Task"]:
        """The tasks whose evaluation rows are reported, each under a protocol id of its own; most tasks are their only part."""
        return [self]

    def protocol(self) -> str:
        """The protocol id under which the evaluation rows are reported."""
        return self.config.protocol()

    @abstractmethod
    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Training examples of a split: `input_ids`, `attention_mask`, `labels` (lists or numbers, not padded)."""

    @abstractmethod
    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """Measure the model (in eval mode, no gradients) on the rows of a split."""
