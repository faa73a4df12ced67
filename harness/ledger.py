"""What a training step holds in memory, counted tensor by tensor instead of measured by the allocator."""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from harness.dryrun import Batch, Loss, backward, undisturbed


def storage_key(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor while it lives (views share it; works on the meta device)."""
    return tensor.untyped_storage()._cdata


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors, each storage once."""
    return sum({storage_key(t): t.untyped_storage().nbytes() for t in tensors}.values())


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state, each storage once, a sharded one whole. Complete only after its first step."""
    tensors = [value for value in tree_iter(dict(optimizer.state)) if isinstance(value, Tensor)]
    sharded = [t for t in tensors if isinstance(t, DTensor)]
    return storage_bytes(t for t in tensors if not isinstance(t, DTensor)) + sum(t.numel() * t.element_size() for t in sharded)


class _Live(TorchDispatchMode):
    """Follows every storage that operators create until it is freed; knows which are casts of given storages."""

    def __init__(self, existing: Iterable[Tensor], weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._existing = {storage_key(t) for t in existing}
        self._weights = {storage_key(t) for t in weights}
        self._bytes: dict[int, int] = {}
        self.casts: set[int] = set()
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        if func is torch.ops.aten._to_copy.default and storage_key(args[0]) in self._weights:
            self.casts.add(storage_key(out))
        return out

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._existing or key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.now -= self._bytes.pop(key)
        self.casts.discard(key)


class _Saved:
    """Storages that the graph keeps for the backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, weakref.ref] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = weakref.ref(storage)
        # an operator's own output, returned as it is, would hold the graph that holds it
        return tensor.detach()

    def alive(self) -> dict[int, int]:
        """Bytes by storage of what is still held: a branch that the loss does not use is freed before."""
        found = {key: ref() for key, ref in self._storages.items()}
        return {key: storage.nbytes() for key, storage in found.items() if storage is not None}


def _autocast(model: nn.Module, dtype: torch.dtype | None) -> Any:
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype) if dtype is not None else nullcontext()


def _stated(model: nn.Module, batch: Batch, autocast: torch.dtype | None) -> dict[str, Any]:
    """The conditions under which the ledger holds."""
    inputs = batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))
    floating = [p for p in model.parameters() if p.is_floating_point()]
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return {
        "batch": inputs.shape[0],
        "length": inputs.shape[1] if inputs.ndim > 1 else 1,
        "dtype": str(max(floating, key=lambda p: p.numel()).dtype).removeprefix("torch."),
        "autocast": None if autocast is None else str(autocast).removeprefix("torch."),
        "attention": "sdpa (math)" if kernel == "sdpa" else kernel,
    }


def memory_ledger(
    model: nn.Module, batch: Batch, loss_fn: Loss, optimizer_bytes: int | None = None, autocast: torch.dtype | None = None
) -> dict[str, Any]:
    """Bytes that one training step (no gradient accumulation) on `batch` holds, each storage counted once.

    Keys: the conditions (`batch`, `length`, `dtype`, `autocast`, `attention`); `weights` (parameters and buffers);
    `gradients` (of all trainable parameters, alive at once); `optimizer` (as given, from `optimizer_state_bytes`, or None);
    `inputs` (the batch); `activations` (kept for the backward pass at the end of the forward pass, without parameters, buffers
    and the batch); `weight_copies` (those kept tensors that are a parameter cast to another dtype, as autocast makes);
    `total` (their sum); `step_peak` (most bytes of tensors alive at once that the forward and backward pass created, gradients
    and temporaries between operators included, workspace inside kernels not).

    The model, its `.grad` fields and torch's generators are left as they were; draws from a method's own generator are not
    undone. Attention is counted with the mathematical kernel.
    """
    own = [*model.parameters(), *model.buffers()]
    inputs = [t for t in batch.values() if isinstance(t, Tensor)]
    known = {storage_key(t) for t in (*own, *inputs)}
    live, saved = _Live((*own, *inputs), model.parameters()), _Saved()
    with undisturbed(model, training=True), live:
        with saved_tensors_hooks(saved.pack, lambda tensor: tensor), _autocast(model, autocast):
            loss = loss_fn(model, batch)
        held = {key: size for key, size in saved.alive().items() if key not in known}
        copies = sum(size for key, size in held.items() if key in live.casts)
        backward(loss, model)
    parts = {
        "weights": storage_bytes(own),
        "gradients": sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        "optimizer": optimizer_bytes,
        "inputs": storage_bytes(inputs),
        "activations": sum(held.values()) - copies,
        "weight_copies": copies,
    }
    return _stated(model, batch, autocast) | parts | {"total": sum(v or 0 for v in parts.values()), "step_peak": live.peak}
