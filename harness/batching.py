"""From encoded examples to padded batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that carry no loss."""


def collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """A function from examples (`input_ids`, `attention_mask`, `labels`, not padded) to a right-padded batch."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [{k: v for k, v in e.items() if k != "labels"} for e in examples]
        batch = dict(tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        batch["labels"] = _labels([e["labels"] for e in examples], batch["input_ids"].shape[1])
        return batch

    return collate


def _labels(labels: list[Any], length: int) -> Tensor:
    if not isinstance(labels[0], list):
        return torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
    return torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels])
