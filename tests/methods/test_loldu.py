"""LoLDU against its definition with a residual, dense gradients, and the paper's counts."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.maths.ldu import ldu
from methods.reparam.loldu import Loldu
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

CONFIG = Loldu.Config(r=None, alpha=1.0, init="lu", targets=["q", "v"])


def prepared(name: str = "tiny_bert", device: str = "cpu", **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(Loldu(replace(CONFIG, **changes)), batches(), lr=0.3)
    return ctx.method.prepare(build(name, device=device), ctx), ctx


def as_defined(weight: torch.Tensor, z: torch.Tensor, r: int, c: float) -> torch.Tensor:
    """W_res + c P L_r diag(z) U_r with torch's own factors."""
    p, lower, upper = torch.linalg.lu(weight.double())
    d = upper.diagonal()
    unit = upper / d[:, None]
    product = lambda values: c * p @ lower[:, :r] @ torch.diag(values) @ unit[:r]  # noqa: E731
    return (weight.double() - product(d[:r]) + product(z.double())).float()


@pytest.mark.parametrize("r", [None, 3])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_maps_are_those_of_the_definition(name: str, r: int | None) -> None:
    model, _ = prepared(name, r=r, alpha=2.0, targets=["q", "v", "up", "down"])
    stock = build(name)
    for place, layer in wrapped(model).items():
        layer.z.data += torch.randn(layer.z.shape, generator=torch.Generator().manual_seed(len(place)))
        weight, bias = weight_and_bias(stock.get_submodule(place))
        k = r or min(weight.shape)
        assert layer.z.shape == (k,)
        x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
        expected = nn.functional.linear(x, as_defined(weight, layer.z.detach(), k, 2.0 / k), bias)
        assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_logits_start_at_the_base_bit_for_bit() -> None:
    for name in ("tiny_bert", "tiny_gpt2"):
        model, _ = prepared(name)
        assert torch.equal(logits(model), logits(build(name)))


def test_with_all_pivots_and_c_of_one_nothing_is_left_of_the_residual() -> None:
    model, _ = prepared(alpha=32.0, init="zeros")
    for layer in wrapped(model).values():
        assert layer.c == 1
        weight, _ = weight_and_bias(layer.base_layer)
        assert torch.allclose(layer.lower * layer.d @ layer.upper, weight, atol=1e-6)
        residual, _ = layer.folded()
        assert residual.abs().max() < 1e-6


def test_only_z_and_the_head_train_and_the_papers_count_holds() -> None:
    model, _ = prepared("roberta_base", "meta")
    own = {name: n for name, n in trainable(model).items() if name not in head_names(model)}
    assert all(name.endswith(".z") for name in own)
    assert sum(own.values()) == 768 * 24 == 18_432
    small, _ = prepared("roberta_base", "meta", r=15)
    assert sum(n for name, n in trainable(small).items() if name.endswith(".z")) == 15 * 24


def test_gradients_of_z_are_those_of_the_dense_weight() -> None:
    model, _ = prepared(r=5)
    layer = next(iter(wrapped(model).values()))
    layer.z.data += 0.1
    x, seed = torch.randn(7, 32), torch.randn(7, 32)
    (layer(x) * seed).sum().backward()
    dense = seed.T @ x  # dL/dW of L = sum(seed * (x W^T + b))
    lower, _, upper = ldu(weight_and_bias(layer.base_layer)[0])
    expected = torch.stack([layer.c * lower[:, i] @ dense @ upper[i] for i in range(5)])
    assert torch.allclose(layer.z.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_training_moves_z_alone_and_merges(name: str) -> None:
    model, ctx = prepared(name)
    before = snapshot(model)
    ctx.train(model)
    assert changed(model, before) == set(trainable(model))
    trained, factors = logits(model), ctx.method.lora(model)
    heads = {n: p.detach().clone() for n, p in model.named_parameters() if n in head_names(model)}
    assert (trained - logits(build(name))).abs().max() > 1e-3
    final = ctx.method.finalize(copy.deepcopy(model), ctx)
    assert set(final.state_dict()) == set(build(name).state_dict())
    assert torch.allclose(logits(final), trained, atol=1e-5)
    peft = get_peft_model(build(name), _peft_config(factors, name))
    with torch.no_grad():
        for place, (up, down) in factors.items():
            layer = peft.base_model.model.get_submodule(place)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
        for place, value in heads.items():
            peft.base_model.model.get_parameter(place).copy_(value)
    assert torch.allclose(logits(peft), trained, atol=1e-5)


def _peft_config(factors: dict[str, tuple[torch.Tensor, torch.Tensor]], name: str) -> LoraConfig:
    rank = next(iter(factors.values()))[1].shape[0]
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(factors), fan_in_fan_out=name == "tiny_gpt2")


@pytest.mark.parametrize(("init", "value"), [("ones", 1.0), ("zeros", 0.0)])
def test_starts_that_leave_d_alone_are_not_the_base_model(init: str, value: float) -> None:
    model, _ = prepared(init=init, alpha=32.0, targets=["o", "down"])
    assert all(torch.equal(layer.z, torch.full((32,), value)) for layer in wrapped(model).values())
    assert not torch.allclose(logits(model), logits(build("tiny_bert")), atol=1e-4)
    assert not replace(CONFIG, init=init).adjust(Loldu.traits).exact_at_init


def test_random_starts_have_their_moments() -> None:
    z = {init: torch.cat([layer.z.detach() for layer in wrapped(prepared(init=init)[0]).values()]) for init in RANDOM}
    assert z["standard_uniform"].abs().max() <= 1 and z["standard_uniform"].std().item() == pytest.approx(3**-0.5, abs=0.1)
    assert z["standard_normal"].std().item() == pytest.approx(1, abs=0.25)
    assert all(replace(CONFIG, init=init).adjust(Loldu.traits).randomness == ("init",) for init in RANDOM)


RANDOM = ("standard_uniform", "standard_normal")


def test_over_half_precision_weights_the_start_is_exact() -> None:
    ctx = FakeContext(Loldu(CONFIG), batches())
    model = ctx.method.prepare(build("tiny_bert").bfloat16(), ctx)
    assert torch.equal(model(**inputs()).logits, build("tiny_bert").bfloat16()(**inputs()).logits)
    assert {layer.z.dtype for layer in wrapped(model).values()} == {torch.float32}


def test_more_pivots_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="more than the 32 pivots of bert"):
        prepared(r=33)
    with pytest.raises(UserError, match="init"):
        replace(CONFIG, init="uniform")
