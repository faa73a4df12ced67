"""SHiRA: published count, masks with exact counts, sparse change, gradients, rank, folding, and PEFT's implementation as reference."""

import pytest
import torch
from peft import ShiraConfig, get_peft_model

from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.sparse.shira import Shira
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    check_half_precision,
    check_merge,
    check_start_and_training,
    count_on,
    prepared,
    shake,
    weight_of,
)
from tests.methods.fakes import batches, build, snapshot

MASKS = ["random", "struct", "magnitude", "gradient", "snip"]


def shira(**changes: object) -> Shira:
    return Shira(Shira.Config(**({"r": 3, "targets": ["q", "v"], "mask": "random", "examples": 8} | changes)))


def still(model: torch.nn.Module) -> torch.nn.Module:
    """The model without dropout, so that its gradients can be recomputed."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = model.config.attn_pdrop = 0.0
    for block in model.modules():
        if hasattr(block, "dropout_prob") or hasattr(block, "attention_dropout"):
            block.dropout_prob = 0.0
    return model


def prepared_with_rows(method: Shira, name: str, seed: int = 0):
    """`prepared` with a context that gives the first rows asked for."""
    method_ctx = prepared.__globals__["FakeContext"]
    original = method_ctx.batches
    method_ctx.batches = lambda self, split, n=None: iter(self.rows[: n // 4])
    try:
        return prepared(method, still(build(name)), seed)
    finally:
        method_ctx.batches = original


def test_published_count() -> None:
    assert count_on(shira(r=32, targets=["q", "k", "v", "up", "down"]), "llama2_7b", classify=False) == 56_098_816


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(shira(), name, "values")


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(shira(), name)


def test_half_precision() -> None:
    check_half_precision(shira(), shira())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_exactly_k_weights_of_a_target_change(name: str, mask: str) -> None:
    loaded = snapshot(build(name))
    method = shira(mask=mask)
    model, ctx = prepared_with_rows(method, name)
    layers = wrapped(model)
    shake(model)
    ranks = {key: torch.linalg.matrix_rank(layer.folded()[0] - weight_and_bias(layer.base_layer)[0]) for key, layer in layers.items()}
    final = method.finalize(model, ctx)
    for key, layer in layers.items():
        k = 3 * (layer.in_features + layer.out_features)
        differing = loaded[f"{key}.weight"] != final.get_submodule(key).weight
        assert differing.sum() == k == len(layer.values)
        if mask in ("random", "struct"):
            assert ranks[key] >= 0.9 * min(layer.out_features, layer.in_features) > 2 * 3
    assert {n for n, p in final.named_parameters() if not torch.equal(p, loaded[n])} == {f"{key}.weight" for key in layers}


def positions(mask: str, name: str = "tiny_bert", seed: int = 0) -> dict[str, torch.Tensor]:
    model, _ = prepared_with_rows(shira(mask=mask), name, seed)
    grids = {key: torch.zeros(layer.out_features * layer.in_features, dtype=torch.bool) for key, layer in wrapped(model).items()}
    for key, layer in wrapped(model).items():
        grids[key][layer.indices] = True
    return {key: grid.view(wrapped(model)[key].out_features, -1) for key, grid in grids.items()}


def test_random_masks_differ_between_layers_and_seeds() -> None:
    first, again, other = positions("random"), positions("random"), positions("random", seed=1)
    keys = list(first)
    assert all(torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key]) for key in keys)
    overlap = (first[keys[0]] & first[keys[-1]]).sum().item() / first[keys[0]].sum().item()
    assert overlap == pytest.approx(6 * 32 / 1024, abs=0.1)


def test_struct_mask_is_the_diagonal_with_whole_rows_and_columns() -> None:
    for grid in positions("struct", "tiny_gpt2").values():
        assert grid.diagonal().all()
        rows, columns = grid.all(1).sum().item(), grid.all(0).sum().item()
        assert rows + columns >= 2 and abs(rows - columns) <= 1
        rest = grid[~grid.all(1)][:, ~grid.all(0)]
        assert rest.sum() <= min(grid.shape) + max(grid.shape)


@pytest.mark.parametrize("mask", ["magnitude", "gradient", "snip"])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_scored_masks_hold_the_largest_scores(name: str, mask: str) -> None:
    grids = positions(mask, name)
    model = still(build(name))
    for batch in batches(3)[:2]:  # the 8 rows
        (4 * model(**batch).loss).backward()
    slopes = {key: model.get_submodule(key).weight.grad for key in grids}
    slopes = {key: (slope.T if name == "tiny_gpt2" else slope).abs() for key, slope in slopes.items()}
    for key, grid in grids.items():
        weight = weight_of(model.get_submodule(key)).abs()
        score = {"magnitude": weight, "gradient": slopes[key], "snip": weight * slopes[key]}[mask]
        assert score[grid].min() >= score[~grid].max()


def test_gradient_masks_leave_flags_and_mode_as_they_were() -> None:
    model, _ = prepared_with_rows(shira(mask="snip"), "tiny_bert")
    assert not model.training and not any(p.requires_grad for p in model.bert.encoder.layer[0].output.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_equals_peft_on_the_same_mask_and_values() -> None:
    ours, _ = prepared(shira(), build("tiny_llama"))
    shake(ours)
    layers = wrapped(ours)
    stock = build("tiny_llama")
    names = {id(module): name for name, module in stock.named_modules()}

    def same_mask(base: torch.nn.Module, r: int, **_: object) -> torch.Tensor:
        return torch.zeros(base.weight.numel()).scatter(0, layers[names[id(base)]].indices, 1.0).view_as(base.weight)

    config = ShiraConfig(r=3, target_modules=["q_proj", "v_proj"])
    config.mask_fn = same_mask
    theirs = get_peft_model(stock, config).base_model.model
    for key, layer in layers.items():
        theirs.get_submodule(key).shira_weight["default"].data.copy_(layer.values.data)
    batch = batches(1)[0]
    ours.eval(), theirs.eval()
    a, b = ours(**batch), theirs(**batch)
    assert torch.allclose(a.logits, b.logits, atol=1e-6)
    a.loss.backward(), b.loss.backward()
    for key, layer in layers.items():
        assert torch.allclose(layer.values.grad, theirs.get_submodule(key).shira_weight["default"].grad, atol=1e-6)
        assert layer.values.grad.any()
    assert_merged_as_in_peft(ours, theirs)


@torch.no_grad()
def assert_merged_as_in_peft(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Folded weights are PEFT's merged ones; PEFT's unmerged ones, and ours less the values, are the loaded ones."""
    for key, layer in wrapped(ours).items():
        other, loaded = theirs.get_submodule(key), layer.base_layer.weight.clone()
        folded = layer.folded()[0]
        other.merge()
        assert torch.allclose(folded, other.base_layer.weight, atol=1e-6) and not torch.allclose(folded, loaded, atol=1e-2)
        other.unmerge()
        without = folded.flatten().scatter_add(0, layer.indices, -layer.values).view_as(loaded)
        assert torch.allclose(other.base_layer.weight, loaded, atol=1e-6) and torch.allclose(without, loaded, atol=1e-6)
        assert torch.equal(layer.base_layer.weight, loaded)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_gradient_of_the_values_is_the_dense_gradient_gathered(name: str) -> None:
    model, _ = prepared(shira(), build(name))
    dense = build(name)
    batch = batches(1)[0]
    model.eval()(**batch).loss.backward()
    dense(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        slope = dense.get_submodule(key).weight.grad
        slope = slope.T if name == "tiny_gpt2" else slope
        assert torch.allclose(layer.values.grad, slope.flatten()[layer.indices], atol=1e-7)


def test_traits_and_bad_configurations() -> None:
    drawn = {mask: shira(mask=mask).config.adjust(Shira.traits).randomness for mask in MASKS}
    assert drawn == {"random": ("mask",), "struct": ("mask",), "magnitude": (), "gradient": ("calibration",), "snip": ("calibration",)}
    with pytest.raises(UserError, match=r"method.mask=topk is not allowed; allowed: random, struct, magnitude, gradient, snip"):
        shira(mask="topk")
    with pytest.raises(UserError, match=r"method.r=17 asks for 1088 of the 1024 weights of .*query; give a smaller method.r"):
        prepared(shira(r=17), build("tiny_bert"))
