"""RandLoRA: published count, the naive sum of bases in every orientation, full rank, gradients, merging."""

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, adapted
from methods.reparam.randlora import RandLora
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    check_half_precision,
    check_merge,
    check_merge_is_pefts,
    check_start_and_training,
    count_on,
    prepared,
    shake,
    weight_of,
)
from tests.methods.fakes import build


def randlora(**changes: object) -> RandLora:
    values = {"r": 6, "alpha": 12.0, "dropout": 0.0, "targets": ["q", "v"], "bases": "dense"}
    return RandLora(RandLora.Config(**(values | changes)))


@pytest.mark.parametrize(
    ("method", "name", "count"),
    [
        (randlora(r=64), "roberta_base", 239_616),
        (randlora(r=30, targets=["q", "k", "v", "up", "down"]), "llama3_8b", 56_626_112),
    ],
)
def test_published_counts(method: RandLora, name: str, count: int) -> None:
    assert count_on(method, name, classify=name == "roberta_base") == count


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(randlora(), name, "randlora_")


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(randlora(), name, size=0.05)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_merge_is_pefts_own(name: str) -> None:
    check_merge_is_pefts(randlora(), name, size=0.05)


def test_half_precision() -> None:
    check_half_precision(randlora(), randlora())


def naive(layer: nn.Module, lamb: Tensor, gamma: Tensor) -> Tensor:
    """dW (out, in) as the formula says, base by base; column k of B_j is column k N + j of PEFT's B, laid out flat."""
    small, large = sorted((layer.in_features, layer.out_features))
    r, n = lamb.shape
    a = layer.randlora_A[ADAPTER][:, 0, :small]
    b = layer.randlora_B[ADAPTER][:large, :n].reshape(large, r, n)
    total = sum(b[..., j] @ lamb[:, j].diag() @ a @ gamma[j].diag() for j in range(n))
    return 2.0 * (total if small == layer.in_features else total.T)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_full_rank_sum_of_bases_forward_and_gradients(name: str) -> None:
    """For out < in, out = in and out > in: output, merged delta, rank, and the gradients of the custom backward."""
    model, _ = prepared(randlora(targets=["q", "k", "v", "up", "down"]), build(name))
    layers = list(adapted(model).values())
    assert {(la.out_features > la.in_features) - (la.out_features < la.in_features) for la in layers} >= {-1, 1}
    for layer in layers:
        lamb, gamma = layer.randlora_lambda[ADAPTER], layer.randlora_gamma[ADAPTER]
        small = min(layer.in_features, layer.out_features)
        assert lamb.shape == (6, -(-small // 6)) and gamma.shape == (lamb.shape[1], small)
        assert not lamb.any() and torch.allclose(gamma, torch.tensor(1 / max(gamma.shape)))
    shake(model)
    for layer in layers[:6]:
        lamb, gamma = layer.randlora_lambda[ADAPTER], layer.randlora_gamma[ADAPTER]
        delta = naive(layer, lamb, gamma)
        merged = layer.get_delta_weight(ADAPTER)
        assert ((merged.T if layer.fan_in_fan_out else merged) - delta).norm() < 1e-5 * delta.norm()
        assert torch.linalg.matrix_rank(delta) == min(delta.shape)
        x = torch.randn(5, layer.in_features)
        draws = torch.randn(5, layer.out_features)
        expected = nn.functional.linear(x, weight_of(layer.base_layer) + delta, layer.base_layer.bias)
        assert (layer(x) - expected).norm() < 1e-5 * expected.norm()
        manual = torch.autograd.grad((expected * draws).sum(), (lamb, gamma))
        actual = torch.autograd.grad((layer(x) * draws).sum(), (lamb, gamma))
        assert all((m - n).norm() < 1e-5 * m.norm() for m, n in zip(manual, actual, strict=True))


@pytest.mark.parametrize(("bases", "share"), [("dense", 1.0), ("sparse", 1 / 3), ("very_sparse", 32**-0.5)])
def test_bases_are_shared_normalised_and_follow_the_seed(bases: str, share: float) -> None:
    def made(seed: int) -> tuple[Tensor, Tensor]:
        model, _ = prepared(randlora(bases=bases, r=16), build("tiny_bert"), seed)
        layers = list(adapted(model).values())
        assert len({layer.randlora_B[ADAPTER].data_ptr() for layer in layers}) == 1
        return layers[0].randlora_A[ADAPTER], layers[0].randlora_B[ADAPTER]

    a, b = made(0)
    assert (a.shape, b.shape) == ((16, 1, 32), (32, 2, 16))
    assert a.std().item() == pytest.approx(1, abs=1e-2) and b.std().item() == pytest.approx(1, abs=1e-2)  # drawn in half precision
    assert (b != 0).float().mean().item() == pytest.approx(share, abs=0.05)
    assert torch.equal(made(0)[1], b) and not torch.equal(made(1)[1], b)


def test_bad_configuration() -> None:
    with pytest.raises(UserError, match=r"method.bases=ternary is not allowed; allowed: dense, sparse, very_sparse"):
        randlora(bases="ternary")
