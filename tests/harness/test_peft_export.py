"""The adapter that a cell leaves, read by PEFT on the loaded base: one rank per target, no rank at all, transposed maps, whole heads."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from harness import peft_export
from harness.config import ModelConfig
from methods.roles import head_names, role_names, weight_is_transposed
from tests.methods.fakes import build, logits

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def base(source: str = "config", **changes: str) -> ModelConfig:
    """What names a base."""
    blank = {"id": None, "revision": None, "max_length": 32, "note": "", "architecture": {}, "biases": True, "classifier": True}
    return ModelConfig(**{**blank, "name": "tiny", "family": "encoder", "source": source, **changes})


def factors(model: nn.Module, ranks: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Random (B, A) of the given ranks on q and up."""
    draws = torch.Generator().manual_seed(0)
    names = role_names(model, ["q", "up"])
    sizes = [model.get_submodule(name).weight.shape for name in names]
    sizes = [size[::-1] if weight_is_transposed(model.get_submodule(name)) else size for name, size in zip(names, sizes, strict=True)]
    return {
        name: (torch.randn(out, rank, generator=draws) / 10, torch.randn(rank, into, generator=draws) / 10)
        for name, (out, into), rank in zip(names, sizes, ranks, strict=True)
    }


def folded(model: nn.Module, change: dict[str, tuple[Tensor, Tensor]]) -> nn.Module:
    """W + B A by hand, and another head."""
    with torch.no_grad():
        for name, (up, down) in change.items():
            module = model.get_submodule(name)
            module.weight += (up @ down).T if weight_is_transposed(module) else up @ down
        for name in head_names(model):
            model.get_parameter(name).add_(0.1)
    return model


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_gpt2"])
@pytest.mark.parametrize("ranks", [[3, 3, 3, 3], [1, 4, 2, 4], [0, 2, 0, 1]], ids=str)
def test_peft_reads_every_rank_and_the_whole_head(name: str, ranks: list[int], tmp_path: Path) -> None:
    change = factors(build(name), ranks)
    final = folded(build(name), change)
    start = logits(build(name))
    peft_export.write(final, peft_export.kept(change), base(), tmp_path / "adapter")
    again = logits(PeftModel.from_pretrained(build(name), tmp_path / "adapter"))
    expected = logits(final)
    assert (expected - start).abs().max() > 1e-2 * start.abs().max()
    assert (again - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_language_model_has_no_head_to_save(tmp_path: Path) -> None:
    model = build("tiny_llama", classify=False)
    change = factors(model, [2, 2, 2, 2])
    peft_export.write(folded(model, change), peft_export.kept(change), base(), tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (told["task_type"], told["modules_to_save"], told["base_model_name_or_path"]) == ("CAUSAL_LM", None, "tiny")
    again = PeftModel.from_pretrained(build("tiny_llama", classify=False), tmp_path / "adapter")
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


def test_a_published_base_is_named_with_its_commit() -> None:
    model = build("tiny_bert")
    told = peft_export.configuration(model, {role_names(model, ["q"])[0]: 2}, base("hub", id="a/b", revision="c" * 40))
    assert (told.base_model_name_or_path, told.revision) == ("a/b", "c" * 40)


def test_what_is_kept_is_a_copy() -> None:
    """`finalize` folds in place."""
    change = factors(build("tiny_bert"), [2, 2, 2, 2])
    kept = peft_export.kept(change)
    before = {name: up.clone() for name, (up, _) in kept.items()}
    for up, _ in change.values():
        up.zero_()
    assert all(torch.equal(kept[name][0], up) and up.abs().max() > 0 for name, up in before.items())
