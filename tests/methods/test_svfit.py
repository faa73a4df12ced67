"""SVFit: exact start, gradients of singular values against a dense run, ranks by energy, published counts, folding."""

import pytest
import torch
from peft import OSFConfig, get_peft_model
from torch import Tensor, nn

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.reparam.svfit import SingularValueLinear, SvFit
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_neox", "tiny_llama", "tiny_mixtral"]


def method(**changes: object) -> SvFit:
    return SvFit(SvFit.Config(**({"r": 4, "energy": None, "measure": "squares", "targets": ["q", "v", "o"]} | changes)))


def prepared(model: nn.Module, **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method(**changes), batches(3))
    return ctx.method.prepare(model, ctx), ctx


def shake(model: nn.Module) -> None:
    """Move every singular value, some below zero."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in wrapped(model).values():
            layer.z.add_(torch.randn(layer.z.shape, generator=draws))


@pytest.mark.parametrize(
    ("name", "r", "count"), [("roberta_base", 768, 18_432), ("roberta_large", 1024, 49_152), ("llama2_7b", 4096, 262_144)]
)
def test_published_counts(name: str, r: int, count: int) -> None:
    """A sixteenth of LoRA's 294,912 and 786,432 at r = 8 on RoBERTa, as the abstract says."""
    model, _ = prepared(build(name, classify="roberta" in name, device="meta"), r=r, targets=["q", "v"])
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == count


@pytest.mark.parametrize("name", FAMILIES)
def test_starts_exactly_at_the_pretrained_model_and_trains_values_and_head_alone(name: str) -> None:
    stock = build(name)
    expected = logits(stock)
    model, ctx = prepared(stock)
    assert torch.equal(logits(model), expected)
    values = {key for key in trainable(model) if key.endswith(".z")}
    assert set(trainable(model)) == values | head_names(model)
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    assert changed(model, before) == values | head_names(model)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_all_values_leave_no_rest_and_r_of_them_the_truncation(name: str) -> None:
    for r in (4, 99):
        model, _ = prepared(build(name), r=r)
        for layer in wrapped(model).values():
            weight = weight_and_bias(layer.base_layer)[0]
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            part = layer.U * layer.z @ layer.Vt
            assert torch.allclose(part, u[:, :r] * s[:r] @ vt[:r], atol=1e-5)
            assert torch.allclose(layer.z, s[:r], atol=1e-6)
            assert ((weight - part).abs().max() < 1e-5) == (r == 99)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_gradients_are_those_of_the_singular_values_of_the_weight(name: str) -> None:
    """dL/dz_i = u_i^T (dL/dW) v_i, the right side from a run of the stock model."""
    model, _ = prepared(build(name))
    model(**batches(1)[0]).loss.backward()
    stock = build(name).requires_grad_(True)
    stock(**batches(1)[0]).loss.backward()
    for key, layer in wrapped(model).items():
        module = stock.get_submodule(key)
        g = module.weight.grad.mT if type(module).__name__ == "Conv1D" else module.weight.grad
        expected = torch.einsum("or,oi,ri->r", layer.U, g, layer.Vt)
        assert torch.allclose(layer.z.grad, expected, atol=1e-4 * expected.abs().max().item() + 1e-9)


def test_it_is_a_shift_of_the_singular_values() -> None:
    """SALT's shift b with ratio 1: U diag(1 * sigma + b) V^T on all values, compared in output and gradient."""
    torch.manual_seed(0)
    base, x = nn.Linear(6, 4), torch.randn(5, 6)
    u, s, vt = torch.linalg.svd(base.weight.detach(), full_matrices=False)
    layer = SingularValueLinear(base, u, s, vt)
    shift = torch.randn(4, requires_grad=True)
    with torch.no_grad():
        layer.z.add_(shift)
    y = x @ (u * (s + shift) @ vt).T + base.bias
    assert torch.allclose(layer(x), y, atol=1e-5)
    layer(x).square().sum().backward()
    y.square().sum().backward()
    assert torch.allclose(layer.z.grad, shift.grad, atol=1e-3)


def test_its_values_are_those_of_pefts_osf() -> None:
    """OSF freezes the first triplets and trains the others: with one frozen, outputs and gradients agree in the values after the first."""
    model, _ = prepared(build("tiny_llama"), r=99)
    shake(model)
    layers = wrapped(model)
    peft = get_peft_model(build("tiny_llama"), OSFConfig(effective_rank=1, target_modules=list(layers))).eval()
    values = {key: peft.base_model.model.get_submodule(key).osf_svd_params["default"]["S_low"] for key in layers}
    with torch.no_grad():
        for key, layer in layers.items():
            assert torch.allclose(values[key], layer.sigma[1:], atol=1e-6)
            layer.z[0] = layer.sigma[0]
            values[key].copy_(layer.z[1:])
    expected = logits(model)
    assert (expected - logits(build("tiny_llama"))).abs().max() > 1e-3
    assert torch.allclose(logits(peft), expected, atol=1e-5)
    (1e3 * model(**batches(1)[0]).loss).backward()
    (1e3 * peft(**batches(1)[0]).loss).backward()
    for key, layer in layers.items():
        slope = values[key].grad
        assert slope.any() and torch.allclose(layer.z.grad[1:], slope, atol=1e-3 * slope.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_the_logits_and_the_trained_values(name: str) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(stock, r=99)
    shake(model)
    expected, factors = logits(model), ctx.method.lora(model)
    values = {key: layer.z.detach().abs().sort(descending=True).values for key, layer in wrapped(model).items()}
    weights = {key: weight_and_bias(layer.base_layer)[0].clone() for key, layer in wrapped(model).items()}
    final = ctx.method.finalize(model, ctx)
    assert (expected - start).abs().max() > 1e-3
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.allclose(logits(final), expected, atol=1e-5 * expected.abs().max().item())
    for key, z in values.items():
        folded = weight_and_bias(final.get_submodule(key))[0]
        assert torch.allclose(torch.linalg.svdvals(folded), z, atol=1e-4)
        assert torch.allclose(weights[key] + factors[key][0] @ factors[key][1], folded, atol=1e-5)


def test_values_carry_no_weight_decay() -> None:
    model, ctx = prepared(build("tiny_bert"))
    decay = {id(p): group["weight_decay"] for group in ctx.method.optimizer(model, ctx.settings).param_groups for p in group["params"]}
    assert {decay[id(layer.z)] for layer in wrapped(model).values()} == {0.0} and 0.1 in decay.values()


def spectrum(values: Tensor) -> nn.Linear:
    base = nn.Linear(3, 3, bias=False)
    base.weight = nn.Parameter(torch.diag(values))
    return base


def test_the_rank_by_energy_is_of_squares_or_of_values() -> None:
    """99 % of 100 + 1 + 0.01 is met by two values, by squares of 10, 1, 0.1; by the values themselves by all three at 99.5 %."""
    base = spectrum(torch.tensor([10.0, 1.0, 0.1]))
    ranks = [
        len(method(r=None, energy=energy, measure=measure).wrap(base, "w", FakeContext(method(), [])).z)
        for energy, measure in ((0.99, "squares"), (0.995, "squares"), (0.9, "values"), (0.99, "values"), (0.995, "values"))
    ]
    assert ranks == [1, 2, 1, 2, 3]


def test_traits_and_configuration() -> None:
    assert method().config.adjust(SvFit.traits).moe and not method(targets=["q", "down"]).config.adjust(SvFit.traits).moe
    with pytest.raises(UserError, match=r"method.r=4 and method.energy=0.5 exclude each other"):
        method(energy=0.5)
    with pytest.raises(UserError, match=r"method.r=None and method.energy=None exclude each other"):
        method(r=None)
    with pytest.raises(UserError, match=r"method.measure=logs is not allowed"):
        method(measure="logs")
    with pytest.raises(UserError, match=r"method.energy=0.9 needs the weights to be counted"):
        prepared(build("tiny_bert", device="meta"), r=None, energy=0.9)
