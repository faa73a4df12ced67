"""LoftQ: falling error below that of quantisation alone, T = 1, full rank, the starting model, merging."""

import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition

from methods.adapters.peft_base import ADAPTER, adapted
from methods.maths.normal_float import round_to_normal_float
from methods.quantize.loftq import LoftQ
from methods.roles import head_names, role_names
from methods.spec import UserError
from tests.methods.adapted import check_half_precision, check_merge, check_merge_is_pefts, count_on, prepared, weight_of
from tests.methods.fakes import build, changed, logits, snapshot, trainable

ALL = ["q", "k", "v", "o", "gate", "up", "down"]
VALUES = {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ALL, "bits": 4, "iterations": 5, "block": 64}


def loftq(**changes: object) -> LoftQ:
    return LoftQ(LoftQ.Config(**(VALUES | changes)))


def loaded(name: str) -> dict[str, torch.Tensor]:
    model = build(name)
    return {key: weight_of(model.get_submodule(key)) for key in role_names(model, ALL)}


def parts(method: LoftQ, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(Q, s B A) by target."""
    model, _ = prepared(method, build(name))
    scale = method.config.alpha / method.config.r
    factors = {key: (layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight) for key, layer in adapted(model).items()}
    return {key: (weight_of(layer.get_base_layer()), scale * factors[key][0] @ factors[key][1]) for key, layer in adapted(model).items()}


@pytest.mark.parametrize("bits", [2, 4])
def test_error_does_not_grow_with_iterations_and_is_below_that_of_quantisation(bits: int) -> None:
    weights = loaded("tiny_llama")
    errors = []
    for t in (1, 2, 3):
        found = parts(loftq(bits=bits, iterations=t), "tiny_llama")
        errors.append(sum((weights[key] - q - delta).square().sum() for key, (q, delta) in found.items()) ** 0.5)
    plain = sum((w - round_to_normal_float(w, bits)).square().sum() for w in weights.values()) ** 0.5
    assert errors[2] <= errors[1] <= errors[0] < plain


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_one_iteration_is_the_decomposition_of_the_quantisation_error(name: str) -> None:
    weights = loaded(name)
    for key, (q, delta) in parts(loftq(iterations=1), name).items():
        assert torch.allclose(q, round_to_normal_float(weights[key], 4), atol=1e-6)
        u, s, vt = torch.linalg.svd(weights[key] - q, full_matrices=False)
        assert torch.allclose(delta, (u[:, :4] * s[:4]) @ vt[:4], atol=1e-6)


@pytest.mark.parametrize("iterations", [2, 5])
def test_later_iterations_follow_the_algorithm(iterations: int) -> None:
    for key, weight in loaded("tiny_llama").items():
        correction = torch.zeros_like(weight)
        for _ in range(iterations):
            q = round_to_normal_float(weight - correction, 4)
            u, s, vt = torch.linalg.svd(weight - q, full_matrices=False)
            correction = (u[:, :4] * s[:4]) @ vt[:4]
        found = parts(loftq(iterations=iterations), "tiny_llama")[key]
        assert torch.allclose(found[0] + found[1], q + correction, atol=1e-5), key
        break


@pytest.mark.parametrize("iterations", [1, 3])
def test_it_is_pefts_loop_over_the_blocks_of_bitsandbytes(iterations: int) -> None:
    """PEFT's `loftq_init` itself moves the weight to an accelerator, so its two steps are called here."""
    quantised = pytest.importorskip("bitsandbytes", reason="bitsandbytes is no dependency of this project").functional
    found = parts(loftq(iterations=iterations), "tiny_llama")
    for key, weight in loaded("tiny_llama").items():
        rest = weight
        for _ in range(iterations):
            codes, state = quantised.quantize_4bit(rest.reshape(-1, 64), blocksize=64, quant_type="nf4")
            q = quantised.dequantize_4bit(codes, state).view_as(weight)  # on a CPU it errs where rows are shorter than blocks
            factors = _low_rank_decomposition(weight - q, reduced_rank=4)
            rest = weight - factors["L"] @ factors["R"]
        assert torch.allclose(found[key][0], q, atol=1e-5) and torch.allclose(found[key][1], weight - rest, atol=1e-5)


def test_full_rank_gives_the_loaded_model() -> None:
    model, _ = prepared(loftq(r=32, targets=["q", "o"]), build("tiny_bert"))
    assert torch.allclose(logits(model), logits(build("tiny_bert")), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_logits_at_the_start_are_closer_to_the_loaded_model_than_quantised_ones(name: str) -> None:
    stock, quantised = build(name), build(name)
    with torch.no_grad():
        for key in role_names(quantised, ALL):
            weight = quantised.get_submodule(key).weight
            weight.copy_(round_to_normal_float(weight, 2))
    model, _ = prepared(loftq(bits=2, r=8), build(name))
    expected = logits(stock)
    assert (logits(model) - expected).norm() < (logits(quantised) - expected).norm()


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_only_adapters_and_head_train(name: str) -> None:
    model, ctx = prepared(loftq(), build(name))
    before = snapshot(model)
    allowed = {key for key in trainable(model) if "lora_" in key} | head_names(model)
    assert set(trainable(model)) == allowed
    assert changed(ctx.method.fit(model, ctx), before) == allowed


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_merge(name: str) -> None:
    check_merge(loftq(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_merge_is_pefts_own(name: str) -> None:
    check_merge_is_pefts(loftq(), name)


def test_half_precision() -> None:
    check_half_precision(loftq(), loftq())


def test_count_on_the_meta_device() -> None:
    assert count_on(loftq(r=64), "llama2_7b", classify=False) == 159_907_840


def test_bad_configurations() -> None:
    with pytest.raises(UserError, match=r"method.bits=1 is out of range; allowed: a number in \[2, 8\]"):
        loftq(bits=1)
    with pytest.raises(UserError, match=r"method.r=33 is more than the rank of .*query; give method.r of at most 32"):
        prepared(loftq(r=33), build("tiny_bert"))
