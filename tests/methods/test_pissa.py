"""PiSSA: the principal part moves into the adapter, exactly, and comes back as a rank-2r LoRA of the loaded weight."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from methods.adapters.peft_base import ADAPTER, adapted
from methods.adapters.pissa import Pissa
from methods.maths.principal import principal_factors
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    check_half_precision,
    check_lora_export,
    check_merge,
    check_merge_is_pefts,
    check_start_and_training,
    count_on,
    in_peft,
    prepared,
    shake,
    weight_of,
)  # fmt: skip
from tests.methods.fakes import build, logits

SEVEN = ["q", "k", "v", "o", "gate", "up", "down"]


def pissa(**changes: object) -> Pissa:
    return Pissa(Pissa.Config(**({"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q", "v"], "iterations": None} | changes)))


def test_published_count() -> None:
    assert count_on(pissa(r=128, alpha=128.0, targets=SEVEN), "llama2_7b", classify=False) == 319_815_680


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(pissa(), name, "lora_")


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(pissa(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_merge_is_pefts_own(name: str) -> None:
    check_merge_is_pefts(pissa(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_the_converted_lora_of_the_loaded_weight_has_rank_two_r(name: str) -> None:
    check_lora_export(pissa(), name, rank=8)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_the_converted_lora_gives_the_logits_in_peft_on_the_loaded_model(name: str) -> None:
    model, ctx = prepared(pissa(), build(name))
    shake(model)
    factors = ctx.method.lora(model)
    assert {len(down) for _, down in factors.values()} == {8}
    expected = logits(model)
    assert torch.allclose(logits(in_peft(build(name), factors)), expected, atol=1e-5)
    assert not torch.allclose(logits(build(name)), expected, atol=1e-4)


def test_half_precision() -> None:
    check_half_precision(pissa(), pissa())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("alpha", [4.0, 8.0])
def test_adapter_starts_at_the_truncated_decomposition(name: str, alpha: float) -> None:
    stock = build(name)
    loaded = {key: weight_of(module) for key, module in stock.named_modules() if getattr(module, "weight", None) is not None}
    model, _ = prepared(pissa(alpha=alpha), stock)
    for key, layer in adapted(model).items():
        u, s, vt = torch.linalg.svd(loaded[key], full_matrices=False)
        principal = (u[:, :4] * s[:4]) @ vt[:4]
        b, a = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
        assert torch.allclose(alpha / 4 * b @ a, principal, atol=1e-6)
        assert torch.allclose(b.T @ b, a @ a.T, atol=1e-6)
        assert torch.allclose(weight_of(layer.get_base_layer()), loaded[key] - principal, atol=1e-6)


def test_equals_pefts_own_initialisation() -> None:
    ours, _ = prepared(pissa(), build("tiny_llama"))
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=["q_proj", "v_proj"])
    theirs = get_peft_model(build("tiny_llama"), config)
    assert len(adapted(ours)) == 4
    for key, layer in adapted(ours).items():
        other = adapted(theirs)[key]
        for mine, reference in ((layer.lora_A, other.lora_A), (layer.lora_B, other.lora_B)):
            assert torch.allclose(mine[ADAPTER].weight.abs(), reference[ADAPTER].weight.abs(), atol=1e-5)  # signs are free in pairs
        assert torch.allclose(layer.get_delta_weight(ADAPTER), other.get_delta_weight(ADAPTER), atol=1e-6)
        assert torch.allclose(layer.get_base_layer().weight, other.get_base_layer().weight, atol=1e-6)


def test_randomised_decomposition_approaches_the_exact_one_and_draws() -> None:
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 30, generator=draws)).Q for n in (40, 30))
    matrix = (left * 0.7 ** torch.arange(30)) @ right.T
    exact = torch.matmul(*principal_factors(matrix, 5))
    torch.manual_seed(0)
    errors = [((torch.matmul(*principal_factors(matrix, 5, n)) - exact).norm() / exact.norm()).item() for n in (0, 16)]
    assert errors[1] < 1e-3 < errors[0]
    assert pissa(iterations=16).config.adjust(Pissa.traits).randomness == ("init",)
    assert pissa().config.adjust(Pissa.traits).randomness == ()


def test_principal_factors_on_the_meta_device_have_the_right_shapes() -> None:
    b, a = principal_factors(torch.empty(7, 5, device="meta", dtype=torch.bfloat16), 3)
    assert (b.shape, a.shape, b.dtype, b.is_meta) == ((7, 3), (3, 5), torch.float32, True)


def test_a_rank_above_that_of_a_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.r=33 is more than the rank of .*query; give method.r of at most 32"):
        prepared(pissa(r=33), build("tiny_bert"))
