"""NOLA: published count, exactness, gradients against stored bases, regeneration, generators; keys and coefficients suffice."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.adapters.own_base import wrapped
from methods.maths import counter
from methods.reparam.nola import Nola, NolaLinear
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable


def nola(**changes: object) -> Nola:
    return Nola(Nola.Config(**({"k": 16, "r": 4, "alpha": 8.0, "dropout": 0.0, "a0": True, "targets": ["q", "v"]} | changes)))


def prepared(method: Nola, model: nn.Module, seed: int = 0) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(3), seed=seed)
    return method.prepare(model, ctx), ctx


def layers(model: nn.Module) -> list[NolaLinear]:
    return list(wrapped(model).values())


def shake(model: nn.Module) -> None:
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers(model):
            for p in (layer.a, layer.b):
                p.add_(0.2 * torch.randn(p.shape, generator=draws))


def stored(layer: NolaLinear) -> tuple[Tensor, Tensor, Tensor]:
    """A0 (r, in) and the bases (k, r, in), (k, out, r)."""
    k, r, n, m = len(layer.a), layer.r, layer.in_features, layer.out_features
    a0 = counter.uniform(layer.keys[0], 0, r * n).view(r, n) / n**0.5
    a = counter.uniform(layer.keys[1], 0, k * r * n).view(k, r, n) / k**0.5
    return a0, a, counter.uniform(layer.keys[2], 0, k * m * r).view(k, m, r) / k**0.5


@pytest.mark.parametrize(("name", "count"), [("roberta_large", 49_152), ("gpt2_medium", 24_576), ("llama2_7b", 65_536)])
def test_published_counts(name: str, count: int) -> None:
    """k = 512 on 48 maps as in the paper; gpt2 keeps q, k and v in one map, which one pair of factors adapts."""
    model, _ = prepared(nola(k=512, r=8), build(name, device="meta"))
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == count
    assert len(layers(model)) * 1024 == count


@pytest.mark.parametrize("a0", [True, False])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"])
def test_exact_at_initialisation_learns_and_merges(name: str, a0: bool) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(nola(a0=a0), stock)
    assert torch.equal(logits(model), start)
    before = snapshot(model)
    model = ctx.method.fit(model, ctx)
    moved = changed(model, before)
    assert moved == set(trainable(model)) == head_names(model) | {k for k in moved if k.endswith((".a", ".b"))}
    shake(model)
    expected, factors = logits(model), ctx.method.lora(model)
    weights = {key: layer.base_layer.weight.detach().clone() for key, layer in wrapped(model).items()}
    final = ctx.method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    effect = (expected - start).abs().max()
    assert effect > 1e-4 and (logits(final) - expected).abs().max() <= min(1e-5, 0.01 * effect)
    for key, (up, down) in factors.items():
        weight = final.get_submodule(key).weight
        assert up.shape[1] == down.shape[0] == 4
        assert torch.allclose(weight - weights[key], (up @ down).mT if name == "tiny_gpt2" else up @ down, atol=1e-6)


@pytest.mark.parametrize("a0", [True, False])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_outputs_and_gradients_equal_those_of_stored_bases(name: str, a0: bool) -> None:
    layer = layers(prepared(nola(a0=a0), build(name))[0])[0]
    with torch.no_grad():
        layer.a.normal_(), layer.b.normal_()
    start, basis_a, basis_b = stored(layer)
    x, g = torch.randn(7, layer.in_features), torch.randn(7, layer.out_features)
    a, b = (p.detach().clone().requires_grad_(True) for p in (layer.a, layer.b))
    down = torch.einsum("k,kij->ij", a, basis_a) + (start if a0 else 0)
    y = layer.base_layer(x) + 2.0 * x @ down.T @ torch.einsum("k,kij->ij", b, basis_b).T
    assert torch.allclose(layer(x), y, atol=1e-5)
    expected = torch.autograd.grad((y * g).sum(), (a, b))
    for made, want in zip(torch.autograd.grad((layer(x) * g).sum(), (layer.a, layer.b)), expected, strict=True):
        assert torch.allclose(made, want, rtol=1e-4, atol=1e-5)


def test_without_a0_the_start_of_a_has_its_variance() -> None:
    """Both starts have entries of variance 1 / (3 in); with a = b = 0 and no A0 no gradient would be other than zero."""
    base = nn.Linear(64, 8)
    for a0 in (True, False):
        layer = NolaLinear(base, nola(k=256, r=32, a0=a0).config, torch.Generator().manual_seed(0))
        assert layer.chain()[0].var().item() == pytest.approx(1 / (3 * 64), rel=0.25)
        layer(torch.randn(5, 64)).sum().backward()
        assert layer.b.grad.abs().max() > 1e-4 and layer.a.grad.abs().max() == 0


def test_forward_and_backward_are_repeatable_and_leave_the_global_generators_alone() -> None:
    model, _ = prepared(nola(), build("tiny_llama"))
    shake(model)
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        model.zero_grad()
        loss = model(**batches(1)[0]).loss
        loss.backward()
        runs.append([loss.detach(), *(p.grad for layer in layers(model) for p in (layer.a, layer.b))])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    layer = layers(prepared(nola(), build("tiny_bert"))[0])[0]
    with torch.no_grad():
        layer.b.normal_()
    x = torch.randn(5, layer.in_features, requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), (layer.a, layer.b))
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), (layer.a, layer.b))
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))


def test_keys_and_coefficients_are_all_there_is() -> None:
    """Another model of the same weights with these few numbers has the same logits; another seed has other bases."""
    model, _ = prepared(nola(), build("tiny_bert"))
    shake(model)
    kept = {k: v.clone() for k, v in model.state_dict().items() if k.endswith((".a", ".b", ".keys"))}
    assert sum(v.numel() for v in kept.values()) == len(layers(model)) * (2 * 16 + 6)
    other, _ = prepared(nola(), build("tiny_bert"), seed=1)
    coefficients = {k: v for k, v in kept.items() if not k.endswith(".keys")}
    other.load_state_dict(coefficients, strict=False)
    assert not torch.allclose(logits(other), logits(model), atol=1e-5)
    other.load_state_dict(kept, strict=False)
    assert torch.equal(logits(other), logits(model))


def test_every_target_draws_under_its_own_name() -> None:
    """A0, A and B of every target have keys of their own."""
    model, _ = prepared(nola(targets=["q", "k"]), build("tiny_bert"))
    assert len(layers(model)) == 4 and len({tuple(key.tolist()) for layer in layers(model) for key in layer.keys}) == 4 * 3


def test_half_precision_base_keeps_float32_coefficients() -> None:
    exact, ctx = prepared(nola(), build("tiny_llama").bfloat16().float())
    half, half_ctx = prepared(nola(), build("tiny_llama").bfloat16())
    shake(exact), shake(half)
    assert {p.dtype for layer in layers(half) for p in (layer.a, layer.b)} == {torch.float32}
    merged, reference = half_ctx.method.finalize(half, half_ctx), ctx.method.finalize(exact, ctx)
    for p, q in zip(merged.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16())


def test_no_decay_on_coefficients() -> None:
    model, ctx = prepared(nola(), build("tiny_bert"))
    own = {id(p) for layer in layers(model) for p in (layer.a, layer.b)}
    groups = ctx.method.optimizer(model, ctx.settings).param_groups
    assert {group["weight_decay"] for group in groups for p in group["params"] if id(p) in own} == {0.0}


def test_copies_are_independent() -> None:
    model, _ = prepared(nola(), build("tiny_bert"))
    shake(model)
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"k": 0}, "method.k=0 is out of range"), ({"r": 0}, "method.r=0"), ({"alpha": 0.0}, "method.alpha=0.0"), ({"targets": ["x"]}, "=x")],
)
def test_bad_configurations(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        nola(**change)
