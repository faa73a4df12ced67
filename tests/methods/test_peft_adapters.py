"""LoRA, DoRA and (IA)^3: published counts, exactness at initialisation, formulas, gradients, and merging into a stock model."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.adapters.dora import Dora
from methods.adapters.ia3 import Ia3
from methods.adapters.lora import Lora
from methods.base import Method
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.adapted import check_lora_export, check_merge_is_pefts
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

SEVEN = ["q", "k", "v", "o", "gate", "up", "down"]
FAMILIES = ["tiny_bert", "tiny_roberta", "tiny_deberta", "tiny_gpt2", "tiny_neox", "tiny_opt", "tiny_llama", "tiny_mixtral"]


def lora(**changes: object) -> Lora:
    values = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q", "v"], "rslora": False, "loraplus_ratio": None} | changes
    return Lora(Lora.Config(**values))


def dora(**changes: object) -> Dora:
    return Dora(Dora.Config(**({"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q", "v"]} | changes)))


def ia3(**changes: object) -> Ia3:
    return Ia3(Ia3.Config(**({"targets": ["k", "v", "down"], "feedforward": ["down"]} | changes)))


METHODS = {"lora": lora, "dora": dora, "ia3": ia3}


def pairs() -> list[tuple[str, str]]:
    """(IA)^3 has no fused experts to act on."""
    return [(method, name) for method in METHODS for name in FAMILIES if (method, name) != ("ia3", "tiny_mixtral")]


def prepared(method: Method, model: nn.Module, seed: int = 0) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(3))
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return method.prepare(model, ctx), ctx


def adapter_count(model: nn.Module) -> int:
    heads = head_names(model)
    return sum(size for name, size in trainable(model).items() if name not in heads)


def shake(model: nn.Module) -> None:
    """Move every adapter parameter away from its initial value."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "ia3_" in name:
                p.add_(0.2 * torch.randn(p.shape, generator=draws))


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        (lora(r=8), "roberta_base", 294_912),
        (lora(r=8), "roberta_large", 786_432),
        (lora(r=8, targets=["q", "k", "v", "o", "up", "down"]), "deberta_v3_base", 1_327_104),
        (lora(r=8, targets=SEVEN), "llama2_7b", 19_988_480),
        (lora(r=64, targets=SEVEN), "llama2_7b", 159_907_840),
        (lora(r=128, targets=SEVEN), "llama2_7b", 319_815_680),
        (lora(r=32, targets=["q", "k", "v", "up", "down"]), "llama2_7b", 56_098_816),
        (lora(r=64, targets=SEVEN), "llama3_8b", 167_772_160),
        (lora(r=64, targets=SEVEN), "mistral_7b", 167_772_160),
        (dora(r=8), "roberta_base", 313_344),
        (dora(r=32, targets=["q", "k", "v", "up", "down"]), "llama2_7b", 56_975_360),
        (ia3(), "roberta_base", 55_296),
        (ia3(), "llama2_7b", 614_400),
        (ia3(), "llama3_8b", 32 * (1024 + 1024 + 14336)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_published_counts(method: Method, name: str, count: int) -> None:
    classify = "llama" not in name and "mistral" not in name
    model, _ = prepared(method, build(name, classify=classify, device="meta"))
    assert adapter_count(model) == count
    if name == "roberta_base":
        assert sum(trainable(model)[key] for key in head_names(model)) == 592_130


@pytest.mark.parametrize(("method", "name"), pairs())
def test_exact_at_initialisation_and_only_adapters_and_head_train(method: str, name: str) -> None:
    stock = build(name)
    expected, head = logits(stock), head_names(stock)
    model, ctx = prepared(METHODS[method](), stock)
    assert torch.allclose(logits(model), expected, atol=1e-6)
    allowed = {key for key in trainable(model) if "lora_" in key or "ia3_" in key}
    assert set(trainable(model)) == allowed | head_names(model)
    assert {key.removeprefix("base_model.model.") for key in head_names(model)} == head
    before = snapshot(model)
    model = ctx.method.fit(model, ctx)
    moved = changed(model, before)
    assert moved <= set(trainable(model))
    assert head_names(model) <= moved and moved & allowed


@pytest.mark.parametrize(("method", "name"), pairs())
def test_merge_gives_the_same_logits_in_a_stock_model(method: str, name: str) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(METHODS[method](), stock)
    shake(model)
    expected = logits(model)
    effect = (expected - start).abs().max()
    assert effect > 2e-5
    final = ctx.method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert (logits(final) - expected).abs().max() <= min(1e-5, 0.01 * effect)
    assert all(p.requires_grad for p in final.parameters())
    assert not hasattr(final, "peft_config")


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("method", METHODS)
def test_merge_is_pefts_own(method: str, name: str) -> None:
    check_merge_is_pefts(METHODS[method](), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_gives_the_factors_of_what_merging_adds(name: str, rslora: bool) -> None:
    check_lora_export(lora(rslora=rslora, targets=["q", "v", "up"]), name, rank=4)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_weights_are_merged_in_float32(method: str) -> None:
    """Merging in float32 rounds once: the result is the float32 merge of the same adapter, rounded."""
    exact, ctx = prepared(METHODS[method](), build("tiny_llama").bfloat16().float())
    half, half_ctx = prepared(METHODS[method](), build("tiny_llama").bfloat16())
    shake(exact)
    shake(half)
    with torch.no_grad():
        values = dict(half.named_parameters())
        for name, p in exact.named_parameters():
            if name in trainable(exact):
                values[name].copy_(p)
    merged, reference = half_ctx.method.finalize(half, half_ctx), ctx.method.finalize(exact, ctx)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    for (name, p), q in zip(merged.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16()), name


def layer_of(model: nn.Module, mark: str) -> nn.Module:
    return next(module for module in model.modules() if hasattr(module, mark) and hasattr(module, "base_layer"))


def weight_of(base: nn.Module) -> Tensor:
    """(out, in)"""
    weight = base.weight.detach()
    return weight.T if isinstance(base, Conv1D) else weight


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / math.sqrt(4))])
def test_lora_formula_and_first_gradients(name: str, rslora: bool, scale: float) -> None:
    """At step 1: dL/dB = s g (A x)^T summed over tokens, dL/dA = s B^T g x^T = 0."""
    model, _ = prepared(lora(rslora=rslora), build(name))
    layer = layer_of(model, "lora_A")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert b.abs().max() == 0 and a.abs().max() <= 1 / math.sqrt(32)
    seen = {}
    layer.register_forward_hook(lambda _, args, out: (seen.update(x=args[0], y=out), out.retain_grad())[0])
    model(**batches(1)[0]).loss.backward()
    x, g = seen["x"].flatten(0, 1), seen["y"].grad.flatten(0, 1)
    assert torch.allclose(b.grad, scale * g.T @ (x @ a.T), atol=1e-8)
    assert b.grad.abs().max() > 1e-6 and a.grad.abs().max() == 0
    shake(model)
    expected = nn.functional.linear(x, weight_of(layer.base_layer) + scale * b @ a, layer.base_layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_dora_formula_norms_and_constant_norm_gradient(name: str) -> None:
    model, ctx = prepared(dora(), build(name))
    layer = layer_of(model, "lora_magnitude_vector")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    g = layer.lora_magnitude_vector["default"].weight
    w = weight_of(layer.base_layer).clone()
    assert torch.allclose(g, w.norm(dim=1), atol=1e-6)
    shake(model)
    v = w + 2.0 * b @ a
    merged = g[:, None] * v / v.norm(dim=1, keepdim=True).detach()
    x = torch.randn(5, 32)
    assert torch.allclose(layer(x), nn.functional.linear(x, merged, layer.base_layer.bias), atol=1e-5)
    draws = torch.randn(5, len(w))
    manual = torch.autograd.grad((nn.functional.linear(x, merged) * draws).sum(), (a, b, g))
    actual = torch.autograd.grad((layer(x) * draws).sum(), (a, b, g))
    assert all(torch.allclose(m, n, rtol=1e-4, atol=1e-5) for m, n in zip(manual, actual, strict=True))
    base = layer.base_layer
    ctx.method.finalize(model, ctx)
    assert torch.allclose(weight_of(base).norm(dim=1), g.abs(), atol=1e-5)


def test_dora_with_zero_b_scales_rows() -> None:
    model, ctx = prepared(dora(), build("tiny_bert"))
    layer = layer_of(model, "lora_magnitude_vector")
    before, base = layer.base_layer.weight.detach().clone(), layer.base_layer
    factors = torch.linspace(0.5, 2.0, len(before))
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(factors)
    ctx.method.finalize(model, ctx)
    assert torch.allclose(base.weight, factors[:, None] * before, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_ia3_scales_outputs_of_k_and_v_and_inputs_of_down(name: str) -> None:
    model, _ = prepared(ia3(), build(name))
    assert {p.unique().item() for key, p in model.named_parameters() if "ia3_l" in key} == {1.0}
    shake(model)
    layers = [module for module in model.modules() if hasattr(module, "ia3_l") and hasattr(module, "base_layer")]
    assert sum(layer.is_feedforward for layer in layers) == 2
    for layer in layers:
        w, bias, scale = weight_of(layer.base_layer), layer.base_layer.bias, layer.ia3_l["default"].flatten()
        x = torch.randn(5, w.shape[1])
        expected = nn.functional.linear(x * scale, w, bias) if layer.is_feedforward else scale * nn.functional.linear(x, w, bias)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def options(method: Method, model: nn.Module, ctx: FakeContext) -> dict[str, tuple[float, float]]:
    """Parameter name -> (learning rate, weight decay)."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = method.optimizer(model, ctx.settings).param_groups
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)) and set(dict(found)) == set(trainable(model))
    return dict(found)


def test_learning_rates_and_decay_by_parameter() -> None:
    plain_model, ctx = prepared(lora(), build("tiny_bert"))
    plain = options(ctx.method, plain_model, ctx)
    plus_model, ctx = prepared(lora(loraplus_ratio=16.0), build("tiny_bert"))
    plus = options(ctx.method, plus_model, ctx)
    assert {v for n, v in plain.items() if "lora_" in n} == {(1e-2, 0.1)}
    assert {v for n, v in plus.items() if "lora_A" in n} == {(1e-2, 0.1)}
    assert {v for n, v in plus.items() if "lora_B" in n} == {(16e-2, 0.1)}
    assert {n: v for n, v in plus.items() if "lora_" not in n} == {n: v for n, v in plain.items() if "lora_" not in n}
    assert plus["base_model.model.classifier.weight"] == (2e-2, 0.1)
    model, ctx = prepared(ia3(), build("tiny_bert"))
    scaled = options(ctx.method, model, ctx)
    assert {v for n, v in scaled.items() if "ia3_l" in n} == {(1e-2, 0.0)}
    model, ctx = prepared(dora(), build("tiny_bert"))
    assert {v for n, v in options(ctx.method, model, ctx).items() if "magnitude" in n} == {(1e-2, 0.0)}


def test_initialisation_follows_torchs_global_seed() -> None:
    def first(seed: int) -> Tensor:
        return layer_of(prepared(lora(), build("tiny_bert"), seed)[0], "lora_A").lora_A["default"].weight

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


def test_fused_families_adapt_the_fused_map_once() -> None:
    model, _ = prepared(lora(), build("tiny_gpt2"))
    assert adapter_count(model) == 2 * 4 * (32 + 96)
    assert logits(model, inputs()).shape == (4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lora(r=0), r"method.r=0 is out of range; allowed: a number in \[1, inf\]"),
        (lambda: lora(alpha=0.0), "method.alpha=0.0 is out of range"),
        (lambda: lora(dropout=1.0), "method.dropout=1.0 is out of range"),
        (lambda: lora(targets=["query"]), "method.targets=query is not allowed; allowed: q, k, v, qkv, o, gate, up, down"),
        (lambda: dora(targets=[]), r"method.targets=\[\] targets nothing"),
        (lambda: lora(loraplus_ratio=0.5), "method.loraplus_ratio=0.5 is out of range"),
        (lambda: ia3(feedforward=["up"]), "method.feedforward holds up, which method.targets lacks; allowed: k, v, down"),
    ],
)
def test_bad_configurations(make: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_ia3_claims_mixtures_of_experts_only_without_feed_forward_targets() -> None:
    attention = ia3(targets=["k", "v"], feedforward=[])
    assert attention.config.adjust(Ia3.traits).moe and not ia3().config.adjust(Ia3.traits).moe
    model, _ = prepared(attention, build("tiny_mixtral"))
    assert adapter_count(model) == 2 * (16 + 16)
