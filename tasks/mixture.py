"""Several classification tasks under one head: rows carry the id of their task, and each row's loss is that of its own task.

The head has the classes of all tasks side by side, and labels number them jointly. So a label alone says which outputs are its task's:
the loss is the cross-entropy over those, the mean over the rows. A row's `task_ids` are there for methods that route.
"""

from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.spec import choice
from tasks.base import EvalOptions, Evaluation, Head, Rows, Task
from tasks.classification import DATASETS, Classification
from tasks.spec import ClassificationConfig, MixtureConfig

MARK = "tasks_of_labels"
"""Attribute of a model that has been taught."""


def own_task_loss(logits: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """Mean cross-entropy of each row over the outputs of its own task.

    `logits` (rows, outputs), `labels` (rows,) output indices, `owner` (outputs,) the task of each output.
    """
    others = owner[None] != owner[labels][:, None]
    return cross_entropy(logits.float().masked_fill(others, -torch.inf), labels)


class IgnoreTaskIds:
    """Before a model's forward pass: `task_ids` leave its arguments."""

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {key: value for key, value in kwargs.items() if key != "task_ids"}


class OwnTaskLoss:
    """After it: the loss of an output becomes `own_task_loss`."""

    def __init__(self, owner: Tensor) -> None:
        self.owner = owner

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        labels = kwargs.get("labels")
        if labels is not None:
            output["loss"] = own_task_loss(output["logits"], labels, self.owner.to(labels.device))
        return output


class Mixture(Task):
    """The union of the tasks' training rows; each task is a part with a protocol id and a metric of its own."""

    config: MixtureConfig

    def __init__(self, config: MixtureConfig, sources: Any) -> None:
        super().__init__(config, sources)
        sizes = [DATASETS[part.partition(":")[0]].labels for part in config.parts]
        self.owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.head = Head(sum(sizes), "single_label_classification")
        self._parts = [Part(self, i, sum(sizes[:i])) for i in range(len(sizes))]

    def parts(self) -> list[Task]:
        """The tasks in the order of their ids."""
        return list(self._parts)

    def attach(self, model: nn.Module) -> None:
        """`task_ids` are accepted and ignored by the transformers model inside, and its loss is that of each row's own task."""
        inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
        if not hasattr(inner, MARK):
            setattr(inner, MARK, self.owner.tolist())
            inner.register_forward_pre_hook(IgnoreTaskIds(), with_kwargs=True)
            inner.register_forward_hook(OwnTaskLoss(self.owner), with_kwargs=True)

    def splits(self) -> dict[str, Rows]:
        """`train` (and `selection`): which rows of which task, in the order of `encode`; and the rows of each under `<task>:<role>`."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        own = {f"{part.short}:{role}": rows for part in self._parts for role, rows in part.splits().items()}
        roles = ("train", "selection") if self.config.selection != "last" else ("train",)
        return {role: self._union(role, self.config.sampling if role == "train" else "proportional") for role in roles} | own

    def _union(self, role: str, sampling: str) -> Rows:
        """Row numbers of every task; the hash covers them and the content of the tasks' rows."""
        found = [part.splits()[role] for part in self._parts]
        most = max(len(rows.data) for rows in found)
        sizes = [most if sampling == "equal" else len(rows.data) for rows in found]
        pairs = [(i, row % len(rows.data)) for i, (rows, size) in enumerate(zip(found, sizes, strict=True)) for row in range(size)]
        content = sha256("\n".join([*(rows.sha256 for rows in found), str(sizes)]).encode()).hexdigest()
        data = Dataset.from_dict({"task": [task for task, _ in pairs], "row": [row for _, row in pairs]})
        official = all(rows.official is not False for rows in found) if any(rows.official is not None for rows in found) else None
        return Rows(data, found[0].source, "+".join(self.config.parts), f"{role} ({sampling})", "as the parts", content, official)

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Examples of the tasks with `task_ids` and joint labels. A repeated row is the same object."""
        choice("split", split, [role for role in ("train", "selection") if role in self.splits()])
        encoded = [part.encode(split, tokenizer) for part in self._parts]
        joint = [[e | {"labels": e["labels"] + part.offset} for e in own] for part, own in zip(self._parts, encoded, strict=True)]
        rows = self.splits()[split].data
        return [joint[task][row] for task, row in zip(rows["task"][:], rows["row"][:], strict=True)]

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`mean`: the unweighted mean of the tasks' primary metrics on a split, for selecting a checkpoint; and each of them."""
        found = {part.short: part.evaluate(model, tokenizer, split, options) for part in self._parts}
        metrics = {name: one.metrics[one.primary] for name, one in found.items()}
        scores = [score for one in found.values() for score in one.predictions["score"]]
        examples = [f"{name}/{example}" for name, one in found.items() for example in one.predictions["example"]]
        predictions = {"example": examples, "score": scores}
        return Evaluation({"mean": sum(metrics.values()) / len(metrics)} | metrics, "mean", higher_is_better=True, predictions=predictions)


class Part(Classification):
    """One task of a mixture: as alone, but out of the joint head, and with its id in every batch."""

    def __init__(self, whole: Mixture, index: int, offset: int) -> None:
        mixed, self.index, self.offset = whole.config, index, offset
        dataset, self.short = mixed.parts[index], mixed.shorts()[index]
        metric = DATASETS[dataset.partition(":")[0]].metrics[0]
        config = ClassificationConfig(
            name=f"{mixed.name}/{self.short}", kind="classification", dataset=dataset, metric=metric, rows="official",
            selection=mixed.selection, max_length=mixed.max_length, limit=mixed.limit, version=mixed.version,
        )  # fmt: skip
        super().__init__(config, whole.sources)
        self.whole = whole

    def protocol(self) -> str:
        """The protocol id of this task within the mixture."""
        return self.whole.config.reported(self.short)

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """As alone, with `task_ids`; labels number the task's own classes."""
        return [example | {"task_ids": self.index} for example in super().encode(split, tokenizer)]

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """As alone, over the task's own outputs."""
        self.whole.attach(model)
        return super().evaluate(model, tokenizer, split, options)

    def _own(self, logits: Tensor) -> Tensor:
        return logits[:, self.offset : self.offset + self.columns.labels]
