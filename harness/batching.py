"""From encoded examples to padded batches: the order of the rows, and how a global batch is cut over micro-batches and processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of positions that carry no loss."""
SHARE = "share"
"""Key of a training batch under which its `Share` stands."""


def collator(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """A function from examples (`input_ids`, `attention_mask`, `labels`, not padded) to a right-padded batch."""

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [{k: v for k, v in e.items() if k != "labels"} for e in examples]
        batch = dict(tokenizer.pad(inputs, padding_side="right", return_tensors="pt"))
        batch["labels"] = _labels([e["labels"] for e in examples], batch["input_ids"].shape[1])
        return batch

    return collate


@dataclass(frozen=True)
class Share:
    """One micro-batch of one process, and what it is of the global batch."""

    rows: tuple[int, ...]
    """Indices of its examples."""
    weight: float
    """Its mean loss times this, averaged over the processes and summed over a step, is the mean loss of the global batch."""
    examples: int
    """Examples of this micro-batch in all processes together."""
    tokens: int
    """Tokens (padding excluded) of this micro-batch in all processes together."""


class GlobalBatches(Sampler):
    """The micro-batches of one process, epoch by epoch: at each step the processes together hold one global batch.

    The order of epoch e is a permutation drawn from `seed` + e, however many processes there are. The mean is over examples,
    for token labels over the tokens that carry loss. Every global batch is cut into equally many micro-batches, as evenly as it
    goes; one that is left without a row in an incomplete last batch gets a row of weight 0.
    """

    def __init__(self, examples: list[dict[str, Any]], batch: int, micro: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch % (micro * world):
            raise ValueError(f"a global batch of {batch} cannot be cut into micro-batches of {micro} on {world} processes")
        self.examples, self.batch, self.seed, self.rank, self.world = examples, batch, seed, rank, world
        self.accumulated = batch // (micro * world)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives; Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch) * self.accumulated

    def __iter__(self) -> Iterator[Share]:
        order = torch.randperm(len(self.examples), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            items = sum(_items(self.examples[row]) for row in rows)
            yield from (self._share(wide, items, rows[0]) for wide in _parts(rows, self.accumulated))

    def _share(self, rows: list[int], items: int, spare: int) -> Share:
        """This process's part of a micro-batch of all of them; `items` = what the global batch's mean is over."""
        own = _parts(rows, self.world)[self.rank]
        weight = self.world * sum(_items(self.examples[row]) for row in own) / max(1, items)
        tokens = sum(sum(self.examples[row]["attention_mask"]) for row in rows)
        return Share(tuple(own or [spare]), weight, len(rows), tokens)


class TrainLoader(DataLoader):
    """Collated micro-batches, each with its `Share`."""

    def __init__(self, batches: GlobalBatches, collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]], pin: bool) -> None:
        together = lambda found: collate(found[1]) | {SHARE: found[0]}  # noqa: E731
        super().__init__(_Rows(batches.examples), batch_sampler=batches, collate_fn=together, pin_memory=pin)

    def set_epoch(self, epoch: int) -> None:
        """See `GlobalBatches.set_epoch`."""
        self.batch_sampler.set_epoch(epoch)


class _Rows(Dataset):
    """Examples that are fetched by `Share`, a micro-batch at a time."""

    def __init__(self, examples: list[dict[str, Any]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, share: Share) -> tuple[Share, list[dict[str, Any]]]:
        return share, [self.examples[row] for row in share.rows]


def _parts(rows: list[int], count: int) -> list[list[int]]:
    """`count` runs of rows whose lengths differ by one at most."""
    return [rows[len(rows) * i // count : len(rows) * (i + 1) // count] for i in range(count)]


def _items(example: dict[str, Any]) -> int:
    """What a mean loss counts: the example itself, or its tokens that carry loss (the first predicts nothing before it)."""
    labels = example["labels"]
    return sum(label != IGNORED for label in labels[1:]) if isinstance(labels, list) else 1


def _labels(labels: list[Any], length: int) -> Tensor:
    if not isinstance(labels[0], list):
        return torch.tensor(labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long)
    return torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels])
