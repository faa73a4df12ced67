"""Floating-point operations, counted by PyTorch's own counter while one batch runs."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.dryrun import Batch, Loss, backward, tokens, undisturbed


def _grouped_mm(a: tuple[int, ...], b: tuple[int, ...], *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """A product of experts' matrices: every row of the ragged side meets one group's matrix, or the contraction is ragged."""
    if len(a) == 2 or len(b) == 2:
        return 2 * a[-2] * a[-1] * b[-1]
    return 2 * a[0] * a[1] * a[2] * b[2]


class _WholeModel:
    """Stands in for the counter's module tracker: its gradient hooks refuse modules that take a parameter as input (DeBERTa)."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Nothing to track."""

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""


def _counter() -> FlopCounterMode:
    # PyTorch's table lacks the grouped product that mixture-of-experts layers call
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_mm})
    counter.mod_tracker = _WholeModel()
    return counter


def training_flops(model: nn.Module, batch: Batch, loss_fn: Loss, autocast: torch.dtype | None = None) -> dict[str, float]:
    """FLOPs of one training step on `batch`: `forward`, `backward`, `total`, `tokens`, `per_token`.

    A multiplication and an addition count as two. Only matrix products, convolutions and attention are counted (what
    `torch.utils.flop_counter` knows), not element-wise work, normalisation or the optimizer. The backward pass is counted as it
    runs: no weight gradients of frozen matrices, nothing below the lowest trainable layer, recomputation under
    checkpointing included. Work on padding is charged to the real tokens, so the rate holds for batches padded like this one.
    """
    device = next(model.parameters()).device.type
    with undisturbed(model, training=True), _counter() as counter:
        with torch.autocast(device, autocast, enabled=autocast is not None):
            loss = loss_fn(model, batch)
        forward = counter.get_total_flops()
        backward(loss, model)
    total = counter.get_total_flops()
    n = tokens(batch)
    return {"forward": forward, "backward": total - forward, "total": total, "tokens": n, "per_token": total / n}


def forward_flops(model: nn.Module, batch: Batch) -> dict[str, float]:
    """FLOPs of a forward pass in eval mode on `batch`: `total`, `tokens`, `per_token`; counted as in `training_flops`."""
    with undisturbed(model, training=False), torch.no_grad(), _counter() as counter:
        model(**batch)
    total, n = counter.get_total_flops(), tokens(batch)
    return {"total": total, "tokens": n, "per_token": total / n}


def scaled(measured: dict[str, float], count: int) -> float:
    """FLOPs of `count` tokens at the measured rate; exact up to attention's part, which grows with the length squared."""
    return measured["per_token"] * count
