"""Houlsby adapters against a network of torch's own layers behind hooks, the block's formula, and the paper's counts."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from methods.adapters.houlsby_adapter import HoulsbyAdapter
from methods.adapters.serial import adapter_parameters, serials
from methods.maths.draws import truncated_normal
from methods.roles import head_names, norms
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

CONFIG = HoulsbyAdapter.Config(bottleneck=6, activation="gelu_new", init_std=1e-2, norms=True, targets=["o", "down"])


def context(**changes: object) -> FakeContext:
    return FakeContext(HoulsbyAdapter(replace(CONFIG, **changes)), batches())


def prepared(name: str = "tiny_bert", **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = context(**changes)
    return ctx.method.prepare(build(name), ctx), ctx


def spread(model: nn.Module, std: float = 0.3) -> None:
    """Random adapters that matter, biases included."""
    torch.manual_seed(1)
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=std)


ACTIVATIONS = {"gelu_new": nn.GELU("tanh"), "gelu": nn.GELU(), "relu": nn.ReLU(), "silu": nn.SiLU()}


def layers_of_torch(adapter: nn.Module, act: str) -> nn.Module:
    """The same bottleneck of nn.Linear layers."""
    k, width = adapter.down.shape
    down, up = nn.Linear(width, k), nn.Linear(k, width)
    state = {"0.weight": adapter.down, "0.bias": adapter.down_bias, "2.weight": adapter.up, "2.bias": adapter.up_bias}
    network = nn.Sequential(down, ACTIVATIONS[act], up)
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_gemma", "tiny_deberta", "tiny_neox", "tiny_opt"])
def test_logits_are_those_of_a_network_behind_the_output_maps(name: str, act: str) -> None:
    if act != "gelu_new" and name != "tiny_bert":
        return
    model, _ = prepared(name, activation=act)
    spread(model)
    stock = build(name)
    assert len(serials(model)) == 2 * stock.config.num_hidden_layers
    for place, layer in serials(model).items():
        network = layers_of_torch(layer.adapter, act)
        stock.get_submodule(place).register_forward_hook(lambda module, args, h, network=network: h + network(h))
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)
    assert not torch.allclose(logits(model), logits(build(name)), atol=1e-3)


def test_the_adapter_stands_before_the_residual_sum_and_the_layernorm() -> None:
    """adapter-bert: attention_output = LayerNorm(adapter(dropout(dense(x))) + input), in eval mode."""
    model, _ = prepared()
    spread(model)
    block = model.bert.encoder.layer[0]
    for output, width in ((block.attention.output, 32), (block.output, 64)):
        x, residual = torch.randn(2, 3, width), torch.randn(2, 3, 32)
        h = output.dense.base_layer(x)
        expected = output.LayerNorm(h + layers_of_torch(output.dense.adapter, "gelu_new")(h) + residual)
        assert torch.allclose(output(x, residual), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "targets", "count"), [
    ("bert_base", ["o", "down"], 1_789_056), ("roberta_base", ["o", "down"], 1_789_056), ("roberta_base", ["down"], 894_528),
])  # fmt: skip
def test_counts_of_the_paper_and_of_pfeiffers_position(name: str, targets: list[str], count: int) -> None:
    ctx = context(bottleneck=48, norms=False, targets=targets)
    model = ctx.method.prepare(build(name, device="meta"), ctx)
    sizes = {n: p.numel() for n, p in adapter_parameters(model).items()}
    assert sum(sizes.values()) == count == 12 * len(targets) * (2 * 768 * 48 + 48 + 768)
    assert set(trainable(model)) == set(sizes) | head_names(model)


def test_all_layernorms_train_also_the_one_of_the_embeddings() -> None:
    ctx = context()
    model = ctx.method.prepare(build("bert_base", device="meta"), ctx)
    names = set(trainable(model)) - set(adapter_parameters(model)) - head_names(model)
    assert names == {f"{norm}.{part}" for norm in norms(model) for part in ("weight", "bias")}
    assert sum(trainable(model)[name] for name in names) == 36_864 + 2 * 768


def test_the_official_codes_start_keeps_logits_to_a_thousandth_and_the_papers_is_not_exact() -> None:
    base = logits(build("tiny_bert"))
    model, _ = prepared(init_std=1e-3)
    assert 0 < (logits(model) - base).abs().max() < 1e-3
    larger, _ = prepared()
    assert (logits(larger) - base).abs().max() > (logits(model) - base).abs().max()


def test_the_start_is_a_normal_cut_at_two_deviations_and_zero_biases() -> None:
    model, _ = prepared()
    for name, parameter in adapter_parameters(model).items():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0 < parameter.abs().max() <= 2e-2
    large = truncated_normal((200, 200), 1e-2, torch.Generator().manual_seed(0), "cpu")
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))  # deviation of a normal cut at +-2
    assert large.std().item() == pytest.approx(1e-2 * cut, rel=0.01) and large.abs().max() <= 2e-2
    assert large.mean().item() == pytest.approx(0, abs=2e-4)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_switching_the_adapter_off_restores_the_base_logits_bit_for_bit(name: str) -> None:
    model, _ = prepared(name)
    spread(model)
    for layer in serials(model).values():
        for parameter in (layer.adapter.up, layer.adapter.up_bias):
            nn.init.zeros_(parameter)
    assert torch.equal(logits(model), logits(build(name)))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_taking_the_adapters_out_restores_the_base_logits_bit_for_bit(name: str) -> None:
    model, ctx = prepared(name)
    spread(model)
    assert not torch.allclose(logits(model), logits(build(name)), atol=1e-3)
    stock, _ = ctx.method.detach(model)
    assert torch.equal(logits(stock), logits(build(name)))


def test_adapters_norms_and_head_move_and_nothing_else() -> None:
    model, ctx = prepared()
    before = snapshot(model)
    ctx.train(model)
    assert changed(model, before) == set(trainable(model))
    assert set(adapter_parameters(model)) < set(trainable(model))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_a_trained_model_comes_apart_and_together_bit_for_bit(name: str) -> None:
    model, ctx = prepared(name)
    model = ctx.method.finalize(ctx.train(model), ctx)
    trained, stock_names = logits(model), set(build(name).state_dict())
    order = [parameter.shape for parameter in model.parameters()]
    stock, tensors = ctx.method.detach(copy.deepcopy(model))
    assert set(stock.state_dict()) == stock_names and not serials(stock)
    assert set(tensors) == set(adapter_parameters(model))
    again = HoulsbyAdapter(CONFIG).attach(stock, tensors)
    assert torch.equal(logits(again), trained)
    assert [parameter.shape for parameter in again.parameters()] == order
    with pytest.raises(ValueError, match="do not fit"):
        HoulsbyAdapter(replace(CONFIG, bottleneck=5)).attach(build(name), tensors)


def test_over_a_half_precision_model_adapters_train_in_float32_and_are_kept_in_half() -> None:
    ctx = context()
    model = ctx.method.prepare(build("tiny_bert").bfloat16(), ctx)
    assert {p.dtype for p in adapter_parameters(model).values()} == {torch.float32}
    assert model(**inputs()).logits.dtype == torch.bfloat16
    assert {p.dtype for p in ctx.method.finalize(model, ctx).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("change", [{"bottleneck": 0}, {"targets": []}, {"targets": ["q"]}, {"activation": "tanh"}, {"init_std": 0.0}])
def test_impossible_values_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(change))}"):
        replace(CONFIG, **change)


def test_mixtures_of_experts_take_the_adapter_behind_attention_alone() -> None:
    traits = HoulsbyAdapter.traits
    assert not CONFIG.adjust(traits).moe and replace(CONFIG, targets=["o"]).adjust(traits).moe
    model, _ = prepared("tiny_mixtral", targets=["o"])
    assert len(serials(model)) == model.config.num_hidden_layers
