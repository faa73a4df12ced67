"""LoRA-XS: bases from the SVD of the weight, published counts, the gradient of R against a dense run, folding."""

import pytest
import torch
from peft import TinyLoraConfig, get_peft_model
from torch import Tensor, nn

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.reparam.lora_xs import LoraXs
from methods.roles import head_names, prunable
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

SEVEN = ["q", "k", "v", "o", "gate", "up", "down"]
FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_neox", "tiny_llama", "tiny_mixtral"]


def method(**changes: object) -> LoraXs:
    return LoraXs(LoraXs.Config(**({"r": 4, "alpha": 6.0, "sigma": 1e-5, "targets": ["q", "v", "o"]} | changes)))


def prepared(model: nn.Module, **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method(**changes), batches(3))
    return ctx.method.prepare(model, ctx), ctx


def shake(model: nn.Module) -> None:
    """Move every core away from its initial value."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in wrapped(model).values():
            layer.R.add_(torch.randn(layer.R.shape, generator=draws))


@pytest.mark.parametrize(
    ("name", "r", "targets", "count"),
    [
        ("roberta_large", 4, ["q", "v", "o", "down"], 1_536),
        ("roberta_large", 8, ["q", "v", "o", "down"], 6_144),
        ("roberta_large", 12, ["q", "v", "o", "down"], 13_824),
        ("roberta_large", 16, ["q", "v", "o", "down"], 24_576),
        ("roberta_large", 20, ["q", "v", "o", "down"], 38_400),
        ("roberta_large", 25, ["q", "v", "o", "down"], 60_000),
        ("mistral_7b", 64, SEVEN, 917_504),
        ("llama3_8b", 64, SEVEN, 917_504),
    ],
)
def test_published_counts(name: str, r: int, targets: list[str], count: int) -> None:
    model, _ = prepared(build(name, classify=name == "roberta_large", device="meta"), r=r, targets=targets)
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == count
    if heads:
        assert sum(trainable(model)[key] for key in heads) == 1024 * 1024 + 1024 + 2 * 1024 + 2


@pytest.mark.parametrize("name", FAMILIES)
def test_starts_at_the_pretrained_model_and_trains_cores_and_head_alone(name: str) -> None:
    stock = build(name)
    expected = logits(stock)
    model, ctx = prepared(stock)
    assert torch.allclose(logits(model), expected, atol=1e-4 * expected.abs().max().item())
    cores = {key for key in trainable(model) if key.endswith(".R")}
    assert set(trainable(model)) == cores | head_names(model)
    assert sum(trainable(model)[key] for key in cores) == 16 * len(wrapped(model))
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    assert changed(model, before) == cores | head_names(model)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_bases_are_the_truncated_svd_with_the_singular_values_on_the_input_side(name: str) -> None:
    stock = build(name)
    weights = {key: weight_and_bias(module)[0].clone() for key, module in prunable(stock).items()}
    model, _ = prepared(stock)
    for key, layer in wrapped(model).items():
        u, s, vt = torch.linalg.svd(weights[key], full_matrices=False)
        assert torch.allclose(layer.B @ layer.A, u[:, :4] * s[:4] @ vt[:4], atol=1e-4)
        assert torch.allclose(layer.B.T @ layer.B, torch.eye(4), atol=1e-5)
        assert torch.allclose(layer.A @ layer.A.T, torch.diag(s[:4] ** 2), atol=1e-5)
        assert torch.equal(weight_and_bias(layer.base_layer)[0], weights[key])


def test_the_core_is_drawn_with_the_stated_spread() -> None:
    model, _ = prepared(build("tiny_bert"), r=16, sigma=1e-5)
    cores = torch.cat([layer.R.detach().flatten() for layer in wrapped(model).values()])
    assert cores.std().item() == pytest.approx(1e-5, rel=0.1)


def dense_gradients(stock: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """dL/dW (out, in) of the whole weights by autograd."""
    stock.zero_grad()
    stock(**batches(1)[0]).loss.backward()
    transposed = {key: type(stock.get_submodule(key)).__name__ == "Conv1D" for key in names}
    return {key: g.mT if transposed[key] else g for key in names for g in [stock.get_submodule(key).weight.grad]}


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_gradient_of_the_core_is_the_projected_gradient_of_the_weight(name: str) -> None:
    """dL/dR = s B^T (dL/dW) A^T, the left side with R = 0, the right side from a run of the stock model."""
    model, _ = prepared(build(name), sigma=0.0)
    layers = wrapped(model)
    model(**batches(1)[0]).loss.backward()
    dense = dense_gradients(build(name).requires_grad_(True), list(layers))
    for key, layer in layers.items():
        expected = 6.0 / 4 * layer.B.T @ dense[key] @ layer.A.T
        assert torch.allclose(layer.R.grad, expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_it_is_pefts_tinylora_on_all_unit_matrices(name: str) -> None:
    """TinyLoRA: U S^1/2 (sum_i v_i P_i) S^1/2 V^T. With P the r^2 unit matrices it is LoRA-XS, v = s S^-1/2 R S^1/2 up to paired signs."""
    model, _ = prepared(build(name))
    shake(model)
    layers = wrapped(model)
    for layer in layers.values():
        layer.R.data.mul_(10)  # singular values of tiny models are small
    stock = build(name)
    peft = get_peft_model(stock, TinyLoraConfig(r=4, u=16, target_modules=list(layers), fan_in_fan_out=name == "tiny_gpt2")).eval()
    turns = {}
    for key, layer in layers.items():
        other = peft.base_model.model.get_submodule(key)
        root = layer.A.norm(dim=1).sqrt()
        signs = (layer.B * other.tinylora_B["default"]).sum(0).sign()
        turns[key] = 1.5 * (signs / root)[:, None] * (root * signs)[None]
        other.tinylora_P["default"] = torch.eye(16).view(16, 4, 4)
        other.tinylora_v["default"][other._tinylora_v_key["default"]].data = (turns[key] * layer.R).flatten().detach()
    expected = logits(model)
    assert (expected - logits(build(name))).abs().max() > 1e-3
    assert torch.allclose(logits(peft), expected, atol=1e-5)
    (1e3 * model(**batches(1)[0]).loss).backward()
    (1e3 * peft(**batches(1)[0]).loss).backward()
    for key, layer in layers.items():
        other = peft.base_model.model.get_submodule(key)
        slope = turns[key] * other.tinylora_v["default"][other._tinylora_v_key["default"]].grad.view(4, 4)
        assert torch.allclose(layer.R.grad, slope, atol=1e-3 * slope.abs().max().item())


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_the_logits_in_a_stock_model(name: str) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(stock)
    shake(model)
    expected, factors = logits(model), ctx.method.lora(model)
    weights = {key: weight_and_bias(layer.base_layer)[0].clone() for key, layer in wrapped(model).items()}
    final = ctx.method.finalize(model, ctx)
    assert (expected - start).abs().max() > 1e-5
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.allclose(logits(final), expected, atol=1e-5 * expected.abs().max().item())
    for key, (up, down) in factors.items():
        assert torch.allclose(weights[key] + up @ down, weight_and_bias(final.get_submodule(key))[0], atol=1e-6)


def test_minus_the_identity_takes_out_the_part_of_rank_r() -> None:
    """R = I with s = -1 leaves the singular values beyond the first r."""
    model, _ = prepared(build("tiny_bert"))
    for layer in wrapped(model).values():
        weight = weight_and_bias(layer.base_layer)[0]
        u, singular, vt = torch.linalg.svd(weight, full_matrices=False)
        layer.scale = -1.0
        with torch.no_grad():
            layer.R.copy_(torch.eye(4))
        assert torch.allclose(layer.folded()[0], u[:, 4:] * singular[4:] @ vt[4:], atol=1e-6)
        left = torch.linalg.svdvals(layer.folded()[0])
        assert torch.allclose(left[:-4], singular[4:], atol=1e-5) and left[-4:].max() < 1e-5


def test_rank_is_cut_to_the_smaller_side_and_the_scale_is_that_of_the_configuration() -> None:
    model, _ = prepared(build("tiny_llama"), r=24, targets=["q", "k"])
    shapes = {(tuple(layer.R.shape), layer.scale) for layer in wrapped(model).values()}
    assert shapes == {((24, 24), 0.25), ((16, 16), 0.25)}


def test_traits_and_configuration() -> None:
    config = method().config
    assert config.adjust(LoraXs.traits).moe and not method(targets=["q", "down"]).config.adjust(LoraXs.traits).moe
    assert method(sigma=0.0).config.adjust(LoraXs.traits).randomness == ()
    with pytest.raises(UserError, match=r"method.sigma=1.0 is out of range"):
        method(sigma=1.0)
