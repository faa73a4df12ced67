"""The cost block of a record: parameters, zeros, bytes, memory, FLOPs and latency, counted the same way for every method.

Each function needs only what exists at its moment: the loaded model (`content_hashes`), the prepared model before training
(`count_parameters`, `shipped`), the fitted model before folding (`changed`, the ledger, training FLOPs), the finalized model
(`count_nonzero`, `exported_names`, forward FLOPs, latency), the exported folder (`count_nonzero_file`, `bytes_of_folder`,
`bits_per_weight`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from harness.flops import scaled
from harness.meter import PeakMeter
from methods.roles import head_names, prunable_parameters

__all__ = [
    "PeakMeter", "bits_per_weight", "bytes_of_folder", "changed", "content_hashes", "cost_block", "count_nonzero",
    "count_nonzero_file", "count_parameters", "exported_names", "shipped", "sparsity", "unique_parameters",
]  # fmt: skip

Counts = dict[str, dict[str, int]]


def unique_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under their first name; two that share memory (tied embeddings) count once, on the meta device too."""
    found: dict[tuple, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = (parameter.untyped_storage()._cdata, parameter.storage_offset(), parameter.numel())
        found.setdefault(key, (name, parameter))
    return dict(found.values())


def count_parameters(model: nn.Module, trains: bool = True) -> dict[str, int]:
    """Numbers of parameters: `total`, `trainable`, `trainable_method` (trainable outside the task head), `trainable_head`, `head`.

    Tied parameters count once. `total` holds what the model carries while it trains: adapters, and both copies of a head
    that PEFT duplicates. Nothing is trainable where the method's traits say that it does not train (`trains` False).
    """
    heads = head_names(model)
    sizes = {name: (p.numel(), trains and p.requires_grad) for name, p in unique_parameters(model).items()}
    trainable = sum(n for n, trains in sizes.values() if trains)
    trainable_head = sum(n for name, (n, trains) in sizes.items() if trains and name in heads)
    return {
        "total": sum(n for n, _ in sizes.values()),
        "trainable": trainable,
        "trainable_method": trainable - trainable_head,
        "trainable_head": trainable_head,
        "head": sum(n for name, (n, _) in sizes.items() if name in heads),
    }


def _tally(tensors: Iterable[tuple[str, Tensor]], prunable: set[str]) -> Counts:
    """Elements and non-zero elements of a stream of tensors, over the prunable ones and over all. A NaN is not zero."""
    counts = {"prunable": {"total": 0, "nonzero": 0}, "all": {"total": 0, "nonzero": 0}}
    for name, tensor in tensors:
        nonzero = int(torch.count_nonzero(tensor))
        for group in ("prunable", "all") if name in prunable else ("all",):
            counts[group]["total"] += tensor.numel()
            counts[group]["nonzero"] += nonzero
    return counts


def count_nonzero(model: nn.Module) -> Counts:
    """Exact `{prunable, all}: {total, nonzero}` of a finalized model's parameters; tied ones once.

    Prunable is what the roles table says: the linear maps (and fused experts) of the blocks; no embeddings, norms, biases, heads.
    """
    return _tally(unique_parameters(model).items(), set(prunable_parameters(model)))


def exported_names(model: PreTrainedModel) -> set[str]:
    """Names that the prunable weights of a stock model have in its exported files.

    transformers writes a fused expert parameter as one matrix per expert, under other names than the model's.
    """
    shapes = {name: torch.empty_like(p, device="meta") for name, p in prunable_parameters(model).items()}
    return set(revert_weight_conversion(model, shapes))


def count_nonzero_file(folder: Path, prunable: set[str]) -> Counts:
    """`count_nonzero` of an exported folder, read tensor by tensor; `prunable` comes from `exported_names`.

    `KeyError` when a prunable weight is not in the files: a sparsity over fewer weights than stated would be wrong.
    """
    counted = list(_file_names(folder))
    missing = sorted(prunable - set(counted))
    if missing:
        raise KeyError(f"{folder} lacks {len(missing)} prunable weights, the first is {missing[0]}")
    return _tally(_file_tensors(folder), prunable)


def sparsity(counts: Counts) -> dict[str, float | None]:
    """Fraction of zeros per group; None where the group is empty."""
    return {group: 1 - c["nonzero"] / c["total"] if c["total"] else None for group, c in counts.items()}


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    return files


def _file_names(folder: Path) -> Iterator[str]:
    for path in _files(folder):
        with safe_open(path, "pt") as file:
            yield from file.keys()


def _file_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in _files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                yield name, file.get_tensor(name)


def bytes_of_folder(folder: Path) -> int:
    """Bytes on disk of the weight files (`*.safetensors`)."""
    return sum(path.stat().st_size for path in _files(folder))


def bits_per_weight(folder: Path) -> float:
    """Effective bits: 8 * bytes on disk / number of exported weights (file headers included)."""
    return 8 * bytes_of_folder(folder) / sum(tensor.numel() for _, tensor in _file_tensors(folder))


def shipped(model: nn.Module, trains: bool = True) -> dict[str, int]:
    """`parameters` and `bytes` of the trainable tensors of the prepared model, as trained: an adapter with its head.

    What a method changes without training (a one-shot mask) is not here: see `changed`. `trains` as in `count_parameters`.
    """
    trainable = [p for p in unique_parameters(model).values() if trains and p.requires_grad]
    return {"parameters": sum(p.numel() for p in trainable), "bytes": sum(p.numel() * p.element_size() for p in trainable)}


def content_hashes(model: nn.Module) -> dict[str, str]:
    """Hash of every parameter (type, shape and values) by name, one tensor at a time."""
    return {name: _content_hash(parameter) for name, parameter in unique_parameters(model).items()}


def _content_hash(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def changed(before: Mapping[str, str], model: nn.Module) -> dict[str, int]:
    """`tensors`, `parameters` and `bytes` of `model` whose content is in no tensor of the base (`before`: its `content_hashes`).

    The lesser of this before and after folding is what must be shipped beside the base, whatever changed it: an adapter ships its
    factors, a mask every matrix that it touched. Names do not matter, so a wrapped or moved layer is not shipped again.
    """
    known = set(before.values())
    new = [p for p in unique_parameters(model).values() if _content_hash(p) not in known]
    return {
        "tensors": len(new),
        "parameters": sum(p.numel() for p in new),
        "bytes": sum(p.numel() * p.element_size() for p in new),
    }


def cost_block(
    *,
    parameters: dict[str, int],
    shipped: dict[str, int],
    changed: dict[str, int],
    nonzero: Counts,
    folder: Path,
    memory: dict[str, Any] | None,
    training_flops: dict[str, float] | None,
    forward_flops: dict[str, float],
    trained_tokens: int,
    read_tokens: int,
    prefill_seconds: float | None,
    decode_seconds_per_token: float | None,
) -> dict[str, Any]:
    """`Record.costs`: the pieces, each from its function, under stable keys.

    `parameters` (`count_parameters` of the prepared model), `shipped`, `changed` (the lesser of before and after folding), `nonzero`
    (`count_nonzero_file` of the export), `sparsity` {prunable, all}, `bytes` (of the exported weights), `bits_per_weight`, `memory`
    (`memory_ledger`; None for a method that does not train), `flops` {step (`training_flops` of one batch or None), training (that rate
    x `trained_tokens`, the tokens of phases with optimizer steps, + the forward rate x `read_tokens`, the tokens of phases that only
    ran forward), forward (`forward_flops` of the finalized model)}, `latency` {prefill seconds, decode seconds per token or None}. A
    record may hold beside them `packed` {bytes of the export without its zeros} (`harness.sparse_export`) and `delta` {entries, bytes
    of what must be added to the base} (`harness.sparse_delta`).
    """
    training = scaled(training_flops, trained_tokens) if training_flops else 0.0
    return {
        "parameters": parameters,
        "shipped": shipped,
        "changed": changed,
        "nonzero": nonzero,
        "sparsity": sparsity(nonzero),
        "bytes": bytes_of_folder(folder),
        "bits_per_weight": bits_per_weight(folder),
        "memory": memory,
        "flops": {
            "step": training_flops,
            "training": training + scaled(forward_flops, read_tokens),
            "forward": forward_flops,
        },
        "latency": {"prefill": prefill_seconds, "decode": decode_seconds_per_token},
    }
