"""Leaving the change of a cell's model as a standard PEFT LoRA adapter, for methods with the trait `exports_lora`.

W' = W + B A with a scale of 1, whatever the technique scaled by; the trained task head goes along whole. `PeftModel.from_pretrained(base,
folder)` then gives the logits of the exported folded model (the contract suite proves it in a process that knows nothing of this package).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from torch import Tensor, nn

from harness.checkpoint import save_tensors
from harness.config import ModelConfig
from harness.store import remove
from methods.roles import family, head_names, weight_is_transposed

FOLDER = "adapter"
"""Beside `model/` in a cell's folder."""
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the stock name of a tensor in PEFT's files."""
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""(B (out, r), A (r, in)) by stock module name, as `Method.lora` gives them."""


def kept(factors: Factors) -> dict[str, tuple[Tensor, Tensor]]:
    """Float32 copies on the CPU, which `Method.finalize` cannot change; PEFT has no rank 0, so that becomes a rank 1 of zeros."""
    return {name: (_padded(up, 1), _padded(down, 0)) for name, (up, down) in factors.items()}


def write(stock: nn.Module, factors: Factors, base: ModelConfig, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; `stock` is the finalized model, whose task head is taken."""
    remove(folder)
    folder.mkdir(parents=True)
    configuration(stock, {name: len(down) for name, (_, down) in factors.items()}, base).save_pretrained(str(folder))
    tensors = {f"{PREFIX}{name}.lora_B.weight": up for name, (up, _) in factors.items()}
    tensors |= {f"{PREFIX}{name}.lora_A.weight": down for name, (_, down) in factors.items()}
    tensors |= {f"{PREFIX}{name}": stock.get_parameter(name) for name in head_names(stock)}
    save_tensors(folder / WEIGHTS, tensors)


def configuration(stock: nn.Module, ranks: Mapping[str, int], base: ModelConfig) -> LoraConfig:
    """The LoRA of these ranks by stock module name; alpha is the rank everywhere, so the scale is 1."""
    largest = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != largest}
    published = base.source == "hub"
    return LoraConfig(
        r=largest, lora_alpha=largest, rank_pattern=other, alpha_pattern=dict(other), target_modules=list(ranks), inference_mode=True,
        fan_in_fan_out=any(weight_is_transposed(stock.get_submodule(name)) for name in ranks),
        modules_to_save=_head_modules(stock) or None, task_type=_task_type(stock),
        base_model_name_or_path=base.id if published else base.name, revision=base.revision if published else None,
    )  # fmt: skip


def _head_modules(stock: nn.Module) -> list[str]:
    """Full names of the modules that are the task head, a pooler inside the backbone among them."""
    roles = family(stock)
    modules = [*roles.head, *([f"{stock.base_model_prefix}.{roles.pooler}"] if roles.pooler else [])]
    heads = head_names(stock)
    return [module for module in modules if any(name.startswith(f"{module}.") for name in heads)]


def _task_type(stock: nn.Module) -> TaskType | None:
    """What PEFT's own `Auto` classes need to know; a masked language model has no type of its own."""
    if head_names(stock):
        return TaskType.SEQ_CLS
    return TaskType.CAUSAL_LM if family(stock).decoder else None


def _padded(factor: Tensor, axis: int) -> Tensor:
    copy = factor.detach().to("cpu", torch.float32, copy=True)
    shape = [1 if i == axis else size for i, size in enumerate(copy.shape)]
    return copy if copy.shape[axis] else torch.zeros(shape)
