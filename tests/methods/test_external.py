"""Adapters that PEFT saved give PEFT's logits, before and after folding; what does not fit, fold or belong to the base is one sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from torch import nn

from harness.cost import changed, content_hashes, count_parameters, shipped
from methods.base import Adapter
from methods.baselines.external import External, attached
from methods.spec import UserError
from tests.methods.fakes import FakeContext, build, logits

QV, HEAD = ["q_proj", "v_proj"], ["score"]
KINDS: dict[str, Callable[..., PeftConfig]] = {
    "lora": lambda **k: LoraConfig(r=3, lora_alpha=7, target_modules=QV, **k),
    "rslora with biases": lambda **k: LoraConfig(r=3, use_rslora=True, bias="lora_only", target_modules=QV, **k),
    "dora": lambda **k: LoraConfig(r=3, use_dora=True, target_modules=QV, **k),
    "ia3": lambda **k: IA3Config(target_modules=[*QV, "down_proj"], feedforward_modules=["down_proj"], **k),
    "loha": lambda **k: LoHaConfig(r=2, target_modules=QV, **k),
    "lokr": lambda **k: LoKrConfig(r=2, target_modules=QV, **k),
    "oft": lambda **k: OFTConfig(r=0, oft_block_size=8, target_modules=QV, **k),
    "hra": lambda **k: HRAConfig(r=2, target_modules=QV, **k),
    "vera": lambda **k: VeraConfig(r=4, target_modules=["q_proj"], **k),
    "vera, projections drawn again": lambda **k: VeraConfig(r=4, target_modules=["q_proj"], save_projection=False, **k),
    "layer norms": lambda **k: LNTuningConfig(**k),
}


class Loaded(FakeContext):
    """Gives what lies in a folder, or a checkpoint."""

    def __init__(self, method: External, found: Adapter | nn.Module) -> None:
        super().__init__(method, [])
        self.found = found

    def external(self) -> Adapter | nn.Module:
        return self.found


def base(**change: Any) -> nn.Module:
    """The cell's model: a decoder with a classifier."""
    return build("tiny_llama", **change)


def saved(folder: Path, config: PeftConfig, model: nn.Module | None = None) -> PeftModel:
    """A moved adapter as PEFT saves it."""
    wrapped = get_peft_model(model or base(), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(str(folder))
    return wrapped


def read(folder: Path, **change: Any) -> Adapter:
    """What the harness reads of it."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    return Adapter(settings | change, load_file(folder / "adapter_model.safetensors"))


def external() -> External:
    """The method; its place is the harness's business."""
    return External(External.Config(path="x", hub=None, revision=None, kind="auto"))


@pytest.mark.parametrize("task", [TaskType.SEQ_CLS, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_gives_the_logits_of_peft_and_folds_to_them(tmp_path: Path, kind: str, task: TaskType | None) -> None:
    trained = saved(tmp_path, KINDS[kind](task_type=task, modules_to_save=HEAD))
    there = logits(PeftModel.from_pretrained(base(), str(tmp_path)))
    assert torch.equal(there, logits(trained)) and (there - logits(base())).abs().max() > 1e-3
    method = external()
    ctx = Loaded(method, read(tmp_path))
    prepared = method.prepare(base(), ctx)
    assert torch.equal(logits(prepared), there)
    folded = method.finalize(method.fit(prepared, ctx), ctx)
    assert type(folded) is type(base()) and torch.allclose(logits(folded), there, atol=2e-6)


def test_an_adapter_without_a_head_fits_a_language_model(tmp_path: Path) -> None:
    trained = saved(tmp_path, KINDS["lora"](task_type=TaskType.CAUSAL_LM), base(classify=False))
    assert torch.equal(logits(attached(base(classify=False), read(tmp_path))), logits(trained))


def test_conv1d_maps_are_adapted_too(tmp_path: Path) -> None:
    trained = saved(tmp_path, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=HEAD), build("tiny_gpt2"))
    assert torch.equal(logits(attached(build("tiny_gpt2"), read(tmp_path))), logits(trained))


def test_what_ships_is_the_adapter_with_its_head(tmp_path: Path) -> None:
    """r (in + out) a target and the head; the file holds the same numbers."""
    trained, model = saved(tmp_path, KINDS["lora"](modules_to_save=HEAD)), base()
    before, layers, config = content_hashes(model), model.config.num_hidden_layers, model.config
    head = sum(p.numel() for p in model.score.parameters())
    kv = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    own = layers * 3 * (2 * config.hidden_size + config.hidden_size + kv)
    method = external()
    prepared = method.prepare(model, Loaded(method, read(tmp_path)))
    counts = count_parameters(prepared)
    assert (counts["trainable_method"], counts["trainable_head"]) == (own, head)
    in_file = sum(tensor.numel() for tensor in read(tmp_path).tensors.values())
    assert shipped(prepared)["parameters"] == changed(before, prepared)["parameters"] == own + head == in_file
    assert count_parameters(trained)["trainable"] == own + head


def test_a_checkpoint_is_taken_as_it_is_and_counts_by_what_differs() -> None:
    model, found, method = base(), base(), external()
    with torch.no_grad():
        found.model.layers[0].self_attn.q_proj.weight.add_(0.1)
        found.score.weight.add_(0.1)
    expected, ctx = logits(found), Loaded(external(), found)
    prepared = method.prepare(model, ctx)
    counts = count_parameters(prepared)
    assert counts["trainable_method"] == found.model.layers[0].self_attn.q_proj.weight.numel()
    assert counts["trainable_head"] == found.score.weight.numel()
    final = method.finalize(prepared, ctx)
    assert torch.equal(logits(final), expected) and method.measure(final, ctx) == {"kind": "checkpoint"}
    assert all(parameter.requires_grad for parameter in final.parameters())


REFUSED: dict[str, tuple[Callable[[Adapter], Adapter], str]] = {
    "no such targets": (
        lambda a: Adapter(a.settings | {"target_modules": ["query"]}, a.tensors),
        "does not fit this model: Target modules",
    ),
    "another rank": (lambda a: Adapter(a.settings | {"r": 5}, a.tensors), "does not fit this model: size mismatch for"),
    "half of it": (lambda a: Adapter(a.settings, {n: t for n, t in a.tensors.items() if "lora_B" not in n}), "lacks 4 of its own tensors"),
    "more than it says": (lambda a: Adapter(a.settings | {"target_modules": ["q_proj"]}, a.tensors), "has 4 tensors without a place"),
    "a head is missing": (lambda a: Adapter(a.settings | {"modules_to_save": ["score"]}, a.tensors), "does not fit this model"),
    "another base": (lambda a: Adapter(a.settings | {"init_lora_weights": "pissa"}, a.tensors), "init_lora_weights=pissa, which changes"),
    "a prompt": (lambda a: Adapter({"peft_type": "PROMPT_TUNING"}, a.tensors), "PEFT's type PROMPT_TUNING, which is not folded here"),
    "a newer PEFT": (lambda a: Adapter(a.settings | {"not_yet_known": 1}, a.tensors), "installed PEFT does not know not_yet_known of this"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, name: str) -> None:
    saved(tmp_path, KINDS["lora"]())
    change, message = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        attached(base(), change(read(tmp_path)))
    assert "\n" not in str(raised.value)


def test_an_adapter_of_a_wider_model_does_not_fit(tmp_path: Path) -> None:
    saved(tmp_path, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]), build("tiny_bert"))
    with pytest.raises(UserError, match="does not fit this model: Target modules"):
        attached(base(), read(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "neither is given; give one: method.path=<folder>"),
        ({"path": "a", "hub": "b/c"}, "both are given"),
        ({"path": "a", "revision": "0" * 40}, "a folder is known by its content"),
        ({"hub": "b/c"}, "method.revision=None is no commit"),
        ({"hub": "b/c", "revision": "main"}, "give the 40 hexadecimal digits of a commit of b/c"),
        ({"path": "a", "kind": "pickle"}, "method.kind=pickle is not allowed; allowed: auto, checkpoint, adapter"),
    ],
)
def test_a_place_is_exactly_one_and_pinned(keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        External.Config(**({"path": None, "hub": None, "revision": None, "kind": "auto"} | keys))
