"""When each cost of a cell is taken: as loaded, prepared, fitted, finalized, exported."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import cost
from harness.context import CellContext
from harness.flops import forward_flops, training_flops
from harness.latency import decode_latency, prefill_latency
from harness.ledger import memory_ledger
from harness.seeding import generator
from methods.base import Batch, Method
from methods.spec import Traits
from tasks.base import Head

LEDGER_ROWS, LEDGER_TOKENS = 8, 128
"""Shape of the batch for which every record's memory ledger holds."""


class CostSheet:
    """Collects the cost block of one cell (`harness.cost` documents its keys)."""

    def __init__(self, method: Method, traits: Traits, ctx: CellContext, head: Head | None, base: nn.Module) -> None:
        self.method, self.traits, self.ctx, self.head = method, traits, ctx, head
        self.length = min(LEDGER_TOKENS, ctx.config.model.max_length)
        self.base = cost.content_hashes(base)
        self.parts: dict[str, Any] = {}

    def prepared(self, model: nn.Module) -> None:
        """Counts before training."""
        trains = self.traits.trains or self.traits.external  # there, `prepare` marks what was trained elsewhere
        self.parts |= {"parameters": cost.count_parameters(model, trains), "shipped": cost.shipped(model, trains)}

    def fitted(self, model: nn.Module) -> None:
        """What training held and did, while adapters and masks are still there."""
        loss = lambda m, batch: self.method.loss(m, batch, self.ctx)  # noqa: E731
        autocast = self.ctx.evaluator.options.autocast
        memory = flops = None
        if self.traits.trains and self.traits.gradients:
            memory = memory_ledger(model, self._batch(model), loss, self.ctx.optimizer_bytes, autocast)
            rows = min(self.ctx.config.recipe.batch, self.ctx.run.eval_batch)  # what trained fitted in memory; more rows might not
            flops = training_flops(model, next(self.ctx.batches("train", rows)), loss, autocast)
        self.parts |= {"memory": memory, "training_flops": flops, "changed": cost.changed(self.base, model)}

    def finalized(self, model: nn.Module) -> None:
        """What using the model costs; decoding starts after half the stated length, so that it stays within the model's positions.

        Folded it may be lighter to ship than as trained: movement pruning's scores end with it.
        """
        folded = cost.changed(self.base, model)
        ids = {key: value[:1] for key, value in self._batch(model).items() if key != "labels"}
        self.parts |= {
            "changed": min(self.parts["changed"], folded, key=lambda form: form["bytes"]),
            "forward_flops": forward_flops(model, ids), "prefill_seconds": prefill_latency(model, ids),
            "decode_seconds_per_token": decode_latency(model, ids["input_ids"][:, : self.length // 2]),
        }  # fmt: skip

    def block(self, folder: Path, model: nn.Module) -> dict[str, Any]:
        """The block, with zeros and bytes measured on the exported files."""
        nonzero = cost.count_nonzero_file(folder, cost.exported_names(model))
        trained = sum(phase.tokens for phase in self.ctx.phases if phase.steps)
        read = sum(phase.tokens for phase in self.ctx.phases if not phase.steps)
        return cost.cost_block(**self.parts, nonzero=nonzero, folder=folder, trained_tokens=trained, read_tokens=read)

    def _batch(self, model: nn.Module) -> Batch:
        """A batch of the stated shape: random ids, no padding, labels that fit the head."""
        draws = generator(0, "cost")
        shape = (LEDGER_ROWS, self.length)
        ids = torch.randint(10, model.config.get_text_config().vocab_size, shape, generator=draws)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": self._labels(ids, draws)}
        return {key: value.to(self.ctx.device) for key, value in batch.items()}

    def _labels(self, ids: Tensor, draws: torch.Generator) -> Tensor:
        if self.head is None:
            return ids
        if self.head.problem_type == "regression":
            return torch.rand(len(ids), generator=draws)
        return torch.randint(0, self.head.num_labels, (len(ids),), generator=draws)
