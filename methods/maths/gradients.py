"""Gradients of chosen weights over a few training rows, before anything trains."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from methods.spec import Diverged

Batch = dict[str, Tensor]


def summed_gradients(
    model: nn.Module, parameters: dict[str, nn.Parameter], batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], Tensor]
) -> dict[str, Tensor]:
    """Name -> sum over rows of dL/dp, float32: each batch's mean loss counts by its rows. In training mode; leaves no gradients.

    The caller's `requires_grad` flags and mode come back; a parameter that the loss does not reach has a zero gradient.

    Raises:
        Diverged: a loss or a gradient is not finite.
    """
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    with _only(model, parameters.values()):
        for batch in batches:
            value = loss(model, batch)
            gradients = torch.autograd.grad(value * len(batch["input_ids"]), list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.add_(0 if gradient is None else gradient)
    for name, total in sums.items():
        if not torch.isfinite(total).all():
            raise Diverged(f"the gradient of {name} is not finite before training")
    return sums


@contextmanager
def _only(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters alone, in training mode."""
    training, flags = model.training, [(p, p.requires_grad) for p in model.parameters()]
    model.requires_grad_(False).train()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        model.train(training)
