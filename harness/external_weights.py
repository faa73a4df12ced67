"""Reads finished weights from elsewhere for `ctx.external()`: safetensors and JSON alone; all that fits, or nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness import external, models
from harness.config import DTYPES, Cell
from harness.peft_export import PREFIX
from methods.base import Adapter
from methods.spec import UserError
from tasks.base import Head


def read(
    cell: Cell, base: nn.Module, tokenizer: PreTrainedTokenizerBase, head: Head | None, drawn: Sequence[str], offline: bool
) -> PreTrainedModel | Adapter:
    """A checkpoint as a model like `base`, or an adapter. `drawn`: parameters of the task head that `base` has no trained values of."""
    place = cell.method_config.place()
    folder = external.folder(place, offline)
    external.check(place, folder, cell.model)
    try:
        if external.kind(folder) == external.ADAPTER:
            return _adapter(folder, drawn, cell.model.name)
        return _checkpoint(folder, cell, base, tokenizer, head)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read: {(str(error).strip().splitlines() or [type(error).__name__])[0]}") from error


def _adapter(folder: Path, drawn: Sequence[str], model: str) -> Adapter:
    tensors = load_file(folder / external.ADAPTER_WEIGHTS)
    held = {name.removeprefix(PREFIX) for name in tensors}
    if lacking := [name for name in drawn if name not in held]:
        raise UserError(f"{folder} has no {lacking[0]}, and {model} has none either; save the task head with the adapter (modules_to_save)")
    return Adapter(json.loads((folder / external.ADAPTER_CONFIG).read_text()), tensors)


def _checkpoint(folder: Path, cell: Cell, base: nn.Module, tokenizer: PreTrainedTokenizerBase, head: Head | None) -> PreTrainedModel:
    model, report = models.from_folder(folder, cell.model, head, DTYPES[cell.precision], tokenizer)
    own, given = _shapes(base), _shapes(model)
    if unlike := [name for name in own.keys() | given.keys() if own.get(name) != given.get(name)]:
        name = min(unlike)
        there, here = given.get(name, "nothing"), own.get(name, "nothing")
        raise UserError(f"{folder} has another architecture than model {cell.model.name}: {name} is {there} there and {here} here")
    if report["missing"]:
        names = report["missing"]
        raise UserError(f"{folder} lacks {len(names)} weights of {type(model).__name__} in the task's form, the first is {names[0]}")
    inside = [name for name in report["unexpected"] if name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name]
    if inside:
        raise UserError(f"{folder} holds {len(inside)} weights that {type(model).__name__} has no place for, the first is {inside[0]}")
    return model


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
