"""VeRA: shared projections from the seed, trained vectors alone, published counts, formula, merging, export as LoRA."""

import pytest
import torch

from methods.adapters.peft_base import ADAPTER, adapted
from methods.adapters.vera import Vera
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    check_half_precision,
    check_lora_export,
    check_merge,
    check_merge_is_pefts,
    check_start_and_training,
    count_on,
    prepared,
    shake,
    weight_of,
)
from tests.methods.fakes import build


def vera(**changes: object) -> Vera:
    return Vera(Vera.Config(**({"r": 8, "d_initial": 0.1, "dropout": 0.0, "targets": ["q", "v"]} | changes)))


@pytest.mark.parametrize(
    ("r", "name", "count"), [(1024, "roberta_base", 43_008), (256, "roberta_base", 24_576), (256, "roberta_large", 61_440)]
)
def test_published_counts(r: int, name: str, count: int) -> None:
    assert count_on(vera(r=r), name) == count


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(vera(), name, "vera_lambda")


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(vera(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_merge_is_pefts_own(name: str) -> None:
    check_merge_is_pefts(vera(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_lora_export(name: str) -> None:
    check_lora_export(vera(targets=["q", "v", "up", "down"]), name, rank=8)


def test_half_precision() -> None:
    check_half_precision(vera(), vera())


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_one_pair_of_projections_is_cut_to_every_target(name: str) -> None:
    """Targets of unequal shapes (k and v of grouped queries too) read the same storage; y = W x + b * (B (d * (A x)))."""
    model, _ = prepared(vera(targets=["q", "k", "v", "up", "down"]), build(name))
    layers = list(adapted(model).values())
    a, b = layers[0].vera_A[ADAPTER], layers[0].vera_B[ADAPTER]
    assert {layer.vera_A[ADAPTER].data_ptr() for layer in layers} == {a.data_ptr()}
    assert {layer.vera_B[ADAPTER].data_ptr() for layer in layers} == {b.data_ptr()}
    shapes = {(layer.out_features, layer.in_features) for layer in layers}
    assert (b.shape[0], a.shape[1]) == (max(o for o, _ in shapes), max(i for _, i in shapes)) and len(shapes) > 2
    assert [key for key, p in model.named_parameters() if p.data_ptr() in (a.data_ptr(), b.data_ptr())] == []
    assert {v.item() for layer in layers for v in layer.vera_lambda_d[ADAPTER]} == {torch.tensor(0.1).item()}
    assert not any(layer.vera_lambda_b[ADAPTER].any() for layer in layers)
    shake(model)
    for layer in layers:
        x = torch.randn(3, layer.in_features)
        lb, ld = layer.vera_lambda_b[ADAPTER], layer.vera_lambda_d[ADAPTER]
        delta = lb.diag() @ b[: layer.out_features] @ ld.diag() @ a[:, : layer.in_features]
        expected = torch.nn.functional.linear(x, weight_of(layer.base_layer) + delta, layer.base_layer.bias)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_projections_are_kaiming_uniform_and_follow_the_seed_alone() -> None:
    def projection(seed: int, drawn: int = 0) -> torch.Tensor:
        torch.manual_seed(drawn)
        model, _ = prepared(vera(r=64), build("tiny_bert"), seed)
        return next(iter(adapted(model).values())).vera_A[ADAPTER]

    first = projection(0)
    bound = (6 / 32) ** 0.5
    assert torch.equal(first, projection(0, drawn=5)) and not torch.equal(first, projection(1))
    assert 0.95 * bound < first.abs().max() <= bound
    assert first.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_bad_configuration() -> None:
    with pytest.raises(UserError, match=r"method.r=0 is out of range"):
        vera(r=0)
