"""Monarch layers: projected from the weight in closed form, trained as factors, multiplied out; published counts."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.maths.monarch import dense
from methods.reparam.monarch import Monarch, MonarchLinear, projection
from methods.roles import prunable, role_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

ALL = ["q", "k", "v", "o", "gate", "up", "down"]
FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_neox", "tiny_llama", "tiny_gemma"]


def method(**changes: object) -> Monarch:
    return Monarch(Monarch.Config(**({"nblocks": 4, "dense_share": 0.0, "targets": ALL} | changes)))


def prepared(model: nn.Module, **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method(**changes), batches(3))
    return ctx.method.prepare(model, ctx), ctx


def stock(kind: str, out: int, inner: int) -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(out, inner) if kind == "conv1d" else nn.Linear(inner, out, bias=kind == "linear")


@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
@pytest.mark.parametrize(("out", "inner"), [(16, 16), (24, 16), (16, 24), (10, 7), (7, 10), (9, 9), (8, 18)])
def test_the_layer_is_its_folded_map(kind: str, out: int, inner: int) -> None:
    base = stock(kind, out, inner)
    layer = MonarchLinear(base, **projection(base, 4))
    x = torch.randn(3, 5, inner, generator=torch.Generator().manual_seed(1))
    weight, bias = layer.folded()
    expected = layer(x).detach()
    assert weight.shape == (out, inner)
    assert torch.allclose(nn.functional.linear(x, weight, bias), expected, atol=1e-5)
    folded = layer.unwrapped()
    assert type(folded) is type(base) and torch.allclose(folded(x), expected, atol=1e-5)


@pytest.mark.parametrize(("out", "inner"), [(10, 7), (7, 10), (9, 9)])
def test_padding_does_not_move_the_optimum(out: int, inner: int) -> None:
    """No gradient of the cropped error at the projection."""
    base = stock("linear", out, inner)
    target = base.weight.detach().clone()
    w1, w2 = (w.requires_grad_(True) for w in projection(base, 4).values())
    error = (dense(w1, w2)[:out, :inner] - target).square().sum()
    error.backward()
    assert error > 1e-3 and max(w1.grad.abs().max(), w2.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_projecting_twice_changes_nothing(name: str) -> None:
    """A model whose maps are Monarch matrices is its own projection, so its logits stay; a first projection moves them."""
    model = build(name)
    start = logits(model)
    model, ctx = prepared(model)
    once = logits(model)
    model = ctx.method.finalize(model, ctx)
    assert torch.allclose(logits(model), once, atol=1e-5)
    again, _ = prepared(model)
    assert torch.allclose(logits(again), once, atol=1e-4)
    assert not torch.allclose(start, once, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "nblocks", "saved"),
    [
        ("bert_base", 4, 12 * (4 * (589_824 - 294_912) + 2 * (2_359_296 - 737_280))),
        ("bert_base", 8, 12 * (4 * (589_824 - 147_456) + 2 * (2_359_296 - 368_640))),
        ("gpt2", 4, 12 * ((1_769_472 - 589_824) + (589_824 - 294_912) + 2 * (2_359_296 - 737_280))),
        ("llama2_7b", 4, 32 * (4 * 4096**2 // 2 + 3 * (4096 * 11008 - (4096**2 + 4096 * 11008) // 4))),
    ],
)
def test_published_counts(name: str, nblocks: int, saved: int) -> None:
    """(min^2 + in out) / nblocks a map. BERT-base falls by 53,084,160 to 56.4 M, the paper's 55 M; GPT-2 to 67.8 M, and to the paper's
    72 M where q, k and v are three maps (12 x 294,912 more)."""
    classify = name == "bert_base"
    whole = build(name, classify=classify, device="meta")
    total = sum(p.numel() for p in whole.parameters())
    model, _ = prepared(build(name, classify=classify, device="meta"), nblocks=nblocks)
    assert sum(p.numel() for p in model.parameters()) == total - saved
    assert sum(trainable(model).values()) == total - saved
    if (name, nblocks) == ("bert_base", 4):
        assert saved == 53_084_160


def test_everything_trains_and_the_dense_weights_are_gone() -> None:
    model, ctx = prepared(build("tiny_bert"))
    layers = wrapped(model)
    assert set(layers) == set(role_names(model, ALL)) and all(layer.base_layer.weight.numel() == 0 for layer in layers.values())
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    moved = changed(model, before)
    factors = {f"{name}.{w}" for name in layers for w in ("w1", "w2")}
    biases = {f"{name}.base_layer.bias" for name in layers if "key" not in name}
    assert factors | biases | {"bert.embeddings.word_embeddings.weight", "classifier.weight"} <= moved
    assert set(trainable(model)) == {name for name in before if not name.endswith("base_layer.weight")}


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_the_logits_in_a_stock_model(name: str) -> None:
    model = build(name)
    kind, keys = type(model), list(model.state_dict())
    model, ctx = prepared(model)
    ctx.method.fit(model, ctx)
    expected = logits(model)
    final = ctx.method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.allclose(logits(final), expected, atol=1e-5 * expected.abs().max().item())


def test_the_last_share_trains_the_product_of_the_factors() -> None:
    """S2D: at the switch the logits stay, and then the weights leave the family of Monarch matrices."""
    seen: list[tuple[str, torch.Tensor, bool]] = []

    class Switching(FakeContext):
        def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True) -> nn.Module:
            seen.append((f"{phase} {share} {select}", logits(model), bool(wrapped(model))))
            super().train(model, phase, share=share, select=select)
            seen.append(("after", logits(model), bool(wrapped(model))))
            return model

    ctx = Switching(method(dense_share=0.25), batches(3))
    model = ctx.method.fit(ctx.method.prepare(build("tiny_llama"), ctx), ctx)
    assert [(what, inside) for what, _, inside in seen] == [
        ("monarch 0.75 False", True), ("after", True), ("dense 0.25 True", False), ("after", False),
    ]  # fmt: skip
    assert torch.allclose(seen[1][1], seen[2][1], atol=1e-4) and not torch.allclose(seen[2][1], seen[3][1], atol=1e-4)
    assert type(ctx.method.finalize(model, ctx)) is type(build("tiny_llama"))
    weight = weight_and_bias(next(iter(prunable(model).values())))[0]
    again = projection(next(iter(prunable(model).values())), 4)
    assert not torch.allclose(dense(**again), weight, atol=1e-4)


def test_bfloat16_keeps_its_type() -> None:
    base = stock("linear", 16, 8).bfloat16()
    layer = MonarchLinear(base, **projection(base, 4))
    assert layer(torch.randn(2, 8).bfloat16()).dtype == torch.bfloat16
    assert layer.w1.dtype == torch.float32 and layer.unwrapped().weight.dtype == torch.bfloat16


def test_traits_and_configuration() -> None:
    assert not method().config.adjust(Monarch.traits).moe and method(targets=["q"]).config.adjust(Monarch.traits).moe
    with pytest.raises(UserError, match=r"method.nblocks=1 is out of range"):
        method(nblocks=1)
    with pytest.raises(UserError, match=r"method.dense_share=1.0 is out of range"):
        method(dense_share=1.0)
