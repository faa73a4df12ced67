"""Counts on the meta device against the numbers that follow from the published architectures."""

from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from harness import params
from harness.compose import compose
from harness.config import Cell
from harness.models import on_meta
from harness.resolve import resolve
from methods.base import Method
from methods.spec import UserError
from tasks.base import Head

HEAD = Head(2, "single_label_classification")
SEVEN = "[q,k,v,o,gate,up,down]"


def cell(*overrides: str) -> Cell:
    return resolve(OmegaConf.create(compose(overrides))).cell


def counts(*overrides: str) -> dict:
    return params.method_parameters(cell(*overrides), HEAD)


@pytest.mark.parametrize(("model", "expected"), [("roberta_base", 294_912), ("roberta_large", 786_432)])
def test_lora_of_rank_8_on_queries_and_values(model: str, expected: int) -> None:
    found = counts("method=lora", f"model={model}", "method.r=8", "method.targets=[q,v]")
    assert found["trainable_method"] == expected
    assert {role: n for role, n in found["roles"].items() if role != "head"} == {"q": expected // 2, "v": expected // 2}


def test_the_head_of_roberta_base() -> None:
    found = counts("method=lora", "model=roberta_base", "method.r=8", "method.targets=[q,v]")
    assert found["head"] == found["trainable_head"] == 592_130
    assert found["roles"]["head"] == 592_130


def test_lora_on_all_maps_of_llama2_7b() -> None:
    assert counts("method=lora", "model=llama2_7b", "method.r=8", f"method.targets={SEVEN}")["trainable_method"] == 19_988_480


def test_bitfit_trains_the_biases_of_roberta_base() -> None:
    found = counts("method=bitfit", "model=roberta_base")
    assert found["trainable_method"] == 102_144
    # 12 layers of q, k, v, o, down (768 each), up (3,072) and two norms; the embeddings have a norm of their own
    assert found["roles"] == {"q": 9216, "k": 9216, "v": 9216, "o": 9216, "up": 36864, "down": 9216, "norms": 19200, "head": 592_130}


def test_full_fine_tuning_trains_all_of_bert_base() -> None:
    found = counts("method=full_ft", "model=bert_base")
    # BertModel with its pooler has 109,482,240; the pooler (590,592) belongs to the head
    assert found["total"] == found["trainable"] == 109_482_240 + 1_538
    assert found["head"] == 590_592 + 1_538
    assert sum(found["roles"].values()) == found["total"]


@pytest.mark.parametrize("overrides", [("method=none",), ("method=magnitude", "method.retrain=false")])
def test_a_method_that_does_not_train_has_no_trainable_parameters(overrides: tuple[str, ...]) -> None:
    found = counts(*overrides, "model=roberta_base")
    assert found["total"] == 124_647_170
    assert (found["trainable"], found["trainable_method"], found["trainable_head"], found["roles"]) == (0, 0, 0, {})


def test_retraining_makes_the_pruned_model_trainable() -> None:
    assert counts("method=magnitude", "method.retrain=true", "model=roberta_base")["trainable"] == 124_647_170


def test_a_language_model_has_no_head_and_its_tied_unembedding_counts_once() -> None:
    found = params.method_parameters(cell("method=full_ft", "model=gpt2"), None)
    assert found["total"] == found["trainable_method"] == 124_439_808
    assert found["head"] == 0
    assert found["roles"]["embeddings"] == (50_257 + 1_024) * 768
    assert "lm_head" not in found["roles"]


def test_roles_of_a_mixture_of_experts() -> None:
    config = cell("method=full_ft", "model=mixtral_8x7b")
    roles = params.trainable_by_role(on_meta(config.model, None))
    assert roles["experts"] == 32 * 8 * 3 * 4096 * 14_336
    assert roles["router"] == 32 * 8 * 4096
    assert roles["lm_head"] == roles["embeddings"] == 32_000 * 4096
    assert sum(roles.values()) == 46_702_792_704


def test_what_has_no_place_in_the_table_is_other() -> None:
    model = on_meta(cell("method=full_ft", "model=tiny_bert").model, HEAD)
    model.gate = nn.Parameter(torch.zeros(3))
    assert params.trainable_by_role(model)["other"] == 3


def test_the_counter_gives_the_same_numbers_and_counts_a_configuration_once() -> None:
    counter = params.Counter()
    lora = ("method=lora", "model=tiny_bert", "method.r=4", "method.targets=[q,v]")
    first = counter(lora)
    assert first == counts(*lora) and counter(lora) is first
    assert counter(("method=full_ft", "model=tiny_bert")) == counts("method=full_ft", "model=tiny_bert")  # from the same bare model
    assert len(counter.models) == 1
    assert counter(("method=full_ft", "model=tiny_gpt2", "task=wikitext2"))["head"] == 0


def test_prunable_weights_are_those_of_the_stock_model() -> None:
    plain, wrapped = counts("method=none", "model=bert_base"), counts("method=lora", "model=bert_base")
    assert plain["prunable"] == wrapped["prunable"] == 12 * (4 * 768**2 + 2 * 768 * 3072)


class Calibrated(Method):
    def prepare(self, model: nn.Module, ctx: params.MetaContext) -> nn.Module:
        next(ctx.batches("train", 8))
        return model


def test_a_method_that_needs_data_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(params, "method_class", lambda _: Calibrated)
    with pytest.raises(UserError, match="method=full_ft needs data before it can be counted"):
        counts("method=full_ft", "model=tiny_bert")


def test_the_context_gives_the_recipe_and_repeatable_draws() -> None:
    config = cell("method=full_ft", "model=tiny_bert")
    config = replace(config, recipe=replace(config.recipe, lr=0.5, head_lr=None, batch=10), budget=replace(config.budget, examples=95))
    ctx = params.MetaContext(config)
    assert (ctx.settings.lr, ctx.settings.head_lr, ctx.total_steps) == (0.5, 0.5, 9)
    first, again, other = (torch.rand(4, generator=ctx.generator(name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert ctx.once("x", lambda: 7) == 7


def test_the_printed_table_names_both_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert params.main(["method=lora", "model=roberta_base", "method.r=8", "method.targets=[q,v]"]) == 0
    out = capsys.readouterr().out
    assert "294,912" in out
    assert "592,130" in out
