"""NLoRA, SLoRA and IntTune against dense products of slices, the Nystrom identity, PEFT's LoRA and the paper's counts."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.reparam.nlora import Nlora
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

ALL = ["q", "k", "v", "o", "gate", "up", "down"]
CONFIG = Nlora.Config(mode="nlora", r=4, alpha=6.0, core="slice", residual=False, targets=ALL)
SCALE = 1.5


def prepared(name: str = "tiny_bert", model: nn.Module | None = None, **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(Nlora(replace(CONFIG, **changes)), batches())
    return ctx.method.prepare(model or build(name), ctx), ctx


def loud(name: str) -> nn.Module:
    """A tiny model whose weights are large enough for their cubes to matter."""
    model = build(name)
    with torch.no_grad():
        for place in wrapped(prepared(name)[0]):
            model.get_submodule(place).weight.mul_(10)
    return model


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_slora_starts_at_the_base(name: str) -> None:
    model, _ = prepared(name, mode="slora")
    assert torch.equal(logits(model), logits(build(name)))
    for layer in wrapped(model).values():
        assert not layer.B.any()
        for factor, fan_in in ((layer.A, layer.in_features), (layer.N, 4)):
            assert 0.5 * fan_in**-0.5 < factor.abs().max() <= fan_in**-0.5


@pytest.mark.parametrize("core", ["slice", "pinv"])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_nlora_starts_at_slices_of_the_weight(name: str, core: str) -> None:
    model, _ = prepared(name, core=core)
    for place, layer in wrapped(model).items():
        weight, bias = weight_and_bias(build(name).get_submodule(place))
        middle = weight[:4, :4] if core == "slice" else torch.linalg.pinv(weight[:4, :4].double()).float()
        effective = weight + SCALE * weight[:, :4] @ middle @ weight[:4]
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = nn.functional.linear(x, effective, bias)
        assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-5 * max(1.0, middle.abs().max().item()))


@pytest.mark.parametrize("mode", ["nlora", "inttune"])
def test_the_official_start_moves_logits_and_the_residual_brings_them_back(mode: str) -> None:
    base = logits(loud("tiny_bert"))
    official, _ = prepared(model=loud("tiny_bert"), mode=mode)
    assert (logits(official) - base).abs().max() > 1e-3
    exact, _ = prepared(model=loud("tiny_bert"), mode=mode, residual=True)
    assert torch.allclose(logits(exact), base, atol=1e-4)
    for place, layer in wrapped(exact).items():
        layer.N.data += 0.1
        weight, _ = weight_and_bias(loud("tiny_bert").get_submodule(place))
        a, n, b = weight[:4], weight[:4, :4], weight[:, :4]
        residual = weight - SCALE * b @ n @ a
        assert torch.allclose(layer.folded()[0], residual + SCALE * b @ (n + 0.1) @ a, atol=1e-4)


def test_the_pseudoinverse_is_exact_on_a_weight_of_rank_r() -> None:
    """Nystrom: W of rank r with an invertible leading block is B pinv(N) A."""
    draws = torch.Generator().manual_seed(0)
    low = torch.randn(32, 4, generator=draws) @ torch.randn(4, 32, generator=draws)
    model, _ = prepared(model=model_with(low), core="pinv", targets=["q"])
    layer = next(iter(wrapped(model).values()))
    assert torch.allclose(layer.B @ layer.N @ layer.A, low, atol=1e-3)
    slices, _ = prepared(model=model_with(low), targets=["q"])
    other = next(iter(wrapped(slices).values()))
    assert not torch.allclose(other.B @ other.N @ other.A, low, atol=1)


def model_with(weight: torch.Tensor) -> nn.Module:
    model = build("tiny_bert")
    model.bert.encoder.layer[0].attention.self.query.weight.data.copy_(weight)
    return model


@pytest.mark.parametrize(("mode", "count"), [("slora", 323_485_696), ("nlora", 323_485_696), ("inttune", 3_670_016)])
def test_counts_of_llama2_7b(mode: str, count: int) -> None:
    ctx = FakeContext(Nlora(replace(CONFIG, mode=mode, r=128)), [])
    model = ctx.method.prepare(build("llama2_7b", classify=False, device="meta"), ctx)
    assert sum(trainable(model).values()) == count
    assert count - 3_670_016 in (319_815_680, 0)  # LoRA's share, and the cores alone


def test_slora_moves_its_last_factor_alone_at_the_first_step() -> None:
    model, ctx = prepared(mode="slora")
    ctx.method.loss(model, batches(1)[0], ctx).backward()
    for layer in wrapped(model).values():
        assert layer.B.grad.any() and not layer.A.grad.any() and not layer.N.grad.any()


@pytest.mark.parametrize("residual", [False, True])
def test_inttune_changes_the_cores_alone(residual: bool) -> None:
    model, ctx = prepared(model=loud("tiny_bert"), mode="inttune", residual=residual)
    before, slices = snapshot(model), {n: b.clone() for n, b in model.named_buffers()}
    ctx.train(model)
    moved = changed(model, before) - head_names(model)
    assert moved == {f"{place}.N" for place in wrapped(model)}
    assert all(torch.equal(b, slices[n]) for n, b in model.named_buffers())
    assert {n.rpartition(".")[2] for n in slices} >= {"A", "B"}


MODES = [("slora", False), ("nlora", False), ("nlora", True), ("inttune", False), ("inttune", True)]


@pytest.mark.parametrize(("mode", "residual"), MODES)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_it_merges_and_becomes_a_lora_of_peft(name: str, mode: str, residual: bool) -> None:
    model, ctx = prepared(model=loud(name), mode=mode, residual=residual)
    ctx.train(model)
    trained, factors = logits(model), ctx.method.lora(model)
    heads = {n: p.detach().clone() for n, p in model.named_parameters() if n in head_names(model)}
    final = ctx.method.finalize(model, ctx)
    assert torch.allclose(logits(final), trained, atol=1e-5)
    assert set(final.state_dict()) == set(build(name).state_dict())
    rank = 8 if residual and mode == "nlora" else 4
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(factors), fan_in_fan_out=name == "tiny_gpt2")
    peft = get_peft_model(loud(name), config)
    with torch.no_grad():
        for place, (up, down) in factors.items():
            layer = peft.base_model.model.get_submodule(place)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
        for place, value in heads.items():
            peft.base_model.model.get_parameter(place).copy_(value)
    assert torch.allclose(logits(peft), trained, atol=1e-5)


def test_merged_into_half_precision_it_is_rounded_once() -> None:
    model, ctx = prepared(model=loud("tiny_bert").bfloat16())
    layer = next(iter(wrapped(model).values()))
    weight = weight_and_bias(layer.base_layer)[0]
    expected = (weight + SCALE * weight[:, :4] @ weight[:4, :4] @ weight[:4]).bfloat16()
    assert model(**inputs()).logits.dtype == torch.bfloat16
    ctx.method.finalize(model, ctx)
    assert torch.equal(model.bert.encoder.layer[0].attention.self.query.weight, expected)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(UserError, match="more than the 32 rows"):
        prepared(r=33)
    with pytest.raises(UserError, match="slora starts from no slices"):
        replace(CONFIG, mode="slora", residual=True)
    with pytest.raises(UserError, match="slora starts from no slices"):
        replace(CONFIG, mode="slora", core="pinv")


def test_traits_follow_the_mode() -> None:
    slora = replace(CONFIG, mode="slora").adjust(Nlora.traits)
    assert slora.exact_at_init and slora.randomness == ("init",) and not slora.moe
    assert not CONFIG.adjust(Nlora.traits).exact_at_init and CONFIG.adjust(Nlora.traits).randomness == ()
    assert replace(CONFIG, residual=True, targets=["q"]).adjust(Nlora.traits).exact_at_init
    assert replace(CONFIG, targets=["q"]).adjust(Nlora.traits).moe
