"""External weights: theta (a checkpoint) or theta + delta (a PEFT adapter, Mangrulkar et al. 2022) as published; evaluated only."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import nn

from methods.adapters.peft_base import PeftMethod, wrap
from methods.base import Adapter, Context
from methods.spec import Place, Traits, UserError

FOLDING = ("LORA", "IA3", "LOHA", "LOKR", "OFT", "HRA", "VERA", "LN_TUNING")
"""PEFT's types whose merged weights are tested against PEFT's own forward pass."""
STARTS = (True, False, "gaussian", "orthogonal")
"""Initialisations of a LoRA that leave the base weight alone; under others the saved factors belong to another base."""


class External(PeftMethod):
    """Takes over a checkpoint of the cell's architecture, or puts an adapter on the cell's model and folds it, and trains nothing.

    Read are safetensors and JSON. The model's own tokenizer is used, and labels must be numbered as the task numbers them. Counted as
    trained and shipped is what differs from the cell's model; what its training cost, and on which rows it was chosen, is not known.
    """

    @dataclass
    class Config:
        """See `methods.spec.Place`."""

        path: str | None
        hub: str | None
        revision: str | None
        kind: str

        def __post_init__(self) -> None:
            self.place()

        def place(self) -> Place:
            """Where the weights lie."""
            return Place(path=self.path, hub=self.hub, revision=self.revision, kind=self.kind)

    traits = Traits(trains=False, gradients=False, exact_at_init=False, external=True, distributed=())

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The finished model; what the cell's model lacks requires gradients."""
        found = ctx.external()
        self.adapter = found.settings if isinstance(found, Adapter) else None
        return attached(model, found) if isinstance(found, Adapter) else marked(found, model)

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The model as it is."""
        return model

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The stock model, an adapter merged in float32."""
        return super().finalize(model, ctx) if isinstance(model, PeftModel) else model.requires_grad_(True)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """What was found."""
        if self.adapter is None:
            return {"kind": "checkpoint"}
        return {"kind": "adapter", "peft_type": self.adapter["peft_type"], "base": self.adapter.get("base_model_name_or_path")}


@torch.no_grad()
def marked(model: nn.Module, base: nn.Module) -> nn.Module:
    """`model` with gradients required exactly where its values differ from those of `base`, which has the same parameters."""
    for (_, own), (_, before) in zip(model.named_parameters(), base.named_parameters(), strict=True):
        own.requires_grad_(not torch.equal(own, before))
    return model


def attached(model: nn.Module, adapter: Adapter) -> PeftModel:
    """The model under the adapter, whose tensors and task head require gradients. `UserError` where they do not fit."""
    config = configuration(adapter.settings)
    try:
        wrapped = wrap(model, config)
        unset = set_peft_model_state_dict(wrapped, adapter.tensors)
    except (ValueError, KeyError, RuntimeError) as error:  # PEFT's ways to say that targets, names or shapes do not fit
        raise UserError(f"the adapter does not fit this model: {_reason(error)}") from error
    own = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    if lacking := sorted(own & set(unset.missing_keys)):
        raise UserError(f"the adapter lacks {len(lacking)} of its own tensors, the first is {lacking[0]}")
    if unset.unexpected_keys:
        raise UserError(f"the adapter has {len(unset.unexpected_keys)} tensors without a place, the first is {unset.unexpected_keys[0]}")
    return wrapped.eval()


def configuration(settings: dict[str, Any]) -> PeftConfig:
    """PEFT's configuration, as for training; `UserError` for what does not fold or reads more than the adapter's own file."""
    kind = settings.get("peft_type")
    if kind not in FOLDING:
        raise UserError(f"the adapter is of PEFT's type {kind}, which is not folded here; allowed: {', '.join(FOLDING)}")
    start = settings.get("init_lora_weights", True)
    if start not in STARTS:
        raise UserError(f"the adapter started from init_lora_weights={start}, which changes the base; save it converted to a plain LoRA")
    try:
        config = PeftConfig.from_peft_type(**{**settings, "inference_mode": False})
    except (TypeError, ValueError) as error:
        raise UserError(f"the installed PEFT cannot read this adapter_config.json: {_reason(error)}") from error
    if unknown := [key for key, value in settings.items() if value and not hasattr(config, key)]:
        raise UserError(f"the installed PEFT does not know {unknown[0]} of this adapter_config.json; install the version that saved it")
    return config


def _reason(error: Exception) -> str:
    """The line of a message that says what is wrong; PEFT's and torch's first line is a title where there are more."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[min(1, len(lines) - 1)].strip().rstrip(".")
