"""One forward and backward pass that leaves a model as it was: the ground of the ledger and the FLOP count."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.kvcache import uncached
from harness.seeding import untouched_generators

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


@contextmanager
def undisturbed(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model in the given mode, without a key-value cache, as it trains; afterwards all is as before, global generators too.

    Attention runs through PyTorch's mathematical kernel, so that what is counted does not depend on which fused kernel
    a device happens to have.
    """
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with uncached(model), untouched_generators(), sdpa_kernel(SDPBackend.MATH):
            model.train(training)
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def backward(loss: Tensor, model: nn.Module) -> list[Tensor]:
    """Gradients of the trainable parameters that `loss` reaches; `.grad` is neither read nor written.

    Post-accumulate hooks do not run (a fused update would change the weights). Reentrant checkpointing refuses this way of
    differentiating with a `RuntimeError`; use the non-reentrant one.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable or not loss.requires_grad:
        return []
    return [g for g in torch.autograd.grad(loss, trainable, allow_unused=True) if g is not None]


def tokens(batch: Batch) -> int:
    """Tokens of a batch without padding; rows where the inputs are no tokens."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return batch["input_ids"].numel() if "input_ids" in batch else next(iter(batch.values())).shape[0]
