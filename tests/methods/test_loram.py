"""LoRAM: the recovered delta lies on what stayed and nowhere else, without pruning it is LoRA, the pruned variant comes back."""

from typing import Any

import pytest
import torch
from torch import nn

from methods.adapters.own_base import wrapped
from methods.prune.loram import Loram, matrix
from methods.roles import prunable
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot, trainable

BASE = {
    "pruning": "rand", "ratio": 0.5, "pattern": "4:8", "criterion": "magnitude", "importance": "l1", "first": 0.0, "last": 0.0,
    "align": 0.0, "r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["q", "k", "v", "o", "gate", "up", "down"],
}  # fmt: skip


def prepared(name: str = "tiny_llama", **changes: Any) -> tuple[Loram, nn.Module, FakeContext]:
    m = Loram(Loram.Config(**BASE | changes))
    ctx = FakeContext(m, batches(4))
    return m, m.prepare(build(name), ctx), ctx


def deltas(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """W - W_0 of all maps, (out, in)."""
    base = build(name)
    return {key: matrix(module) - matrix(base.get_submodule(key)) for key, module in prunable(model).items()}


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_opt"])
@pytest.mark.parametrize("pruning", ["rand", "stru"])
def test_the_delta_lies_on_kept_rows_and_columns_alone(name: str, pruning: str) -> None:
    m, model, ctx = prepared(name, pruning=pruning)
    model = m.fit(model, ctx)
    small = {key: (layer.factors()[0] @ layer.factors()[1]) for key, layer in wrapped(model).items()}
    factors = m.lora(model)
    model = m.finalize(model, ctx)
    for key, delta in deltas(model, name).items():
        up, down = factors[key]
        torch.testing.assert_close(delta, up @ down, rtol=1e-4, atol=1e-6)
        rows = m.rows.get(key, torch.arange(len(delta)))
        columns = m.columns.get(key, torch.arange(delta.shape[1]))
        torch.testing.assert_close(delta[rows][:, columns], small[key], rtol=1e-4, atol=1e-6)
        outside = torch.ones_like(delta, dtype=torch.bool)
        outside[rows[:, None], columns] = False
        assert outside.any() and (delta[outside] == 0).all() and small[key].abs().max() > 0
        assert up.shape == (len(delta), 4) and down.shape == (4, delta.shape[1])


def test_only_maps_change_and_biases_come_back() -> None:
    m, model, ctx = prepared("tiny_gpt2")
    model = m.finalize(m.fit(model, ctx), ctx)
    base = snapshot(build("tiny_gpt2"))
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, base[name])}
    assert changed == {f"{key}.weight" for key in prunable(model)} | {"score.weight"}


@pytest.mark.parametrize(("pruning", "ratio"), [("unst", 0.5), ("semi", 0.5)])
@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
def test_where_weights_were_zeroed_the_delta_is_masked(pruning: str, ratio: float, criterion: str) -> None:
    m, model, ctx = prepared(pruning=pruning, ratio=ratio, criterion=criterion)
    masks = {key: mask.clone() for key, mask in m.masks.items()}
    assert m.measure(model, ctx)["pruned_map_weights"] == sum(int(mask.sum()) for mask in masks.values())
    model = m.fit(model, ctx)
    small = {key: (layer.factors()[0] @ layer.factors()[1]) for key, layer in wrapped(model).items()}
    assert m.lora(model) == {}
    for key, delta in deltas(m.finalize(model, ctx), "tiny_llama").items():
        torch.testing.assert_close(delta, small[key] * masks[key], rtol=1e-3, atol=1e-6)
        assert (delta[~masks[key]] == 0).all() and (masks[key].sum() == delta.numel() // 2)
    if pruning == "semi":
        assert all((mask.unflatten(-1, (-1, 8)).sum(-1) == 4).all() for mask in masks.values())


@pytest.mark.parametrize("pruning", ["rand", "unst"])
def test_without_pruning_it_is_lora(pruning: str) -> None:
    """Nothing is cut: the logits while training are those after it, and W = W_0 + s B A."""
    m, model, ctx = prepared(pruning=pruning, ratio=0.0)
    torch.testing.assert_close(logits(model), logits(build("tiny_llama")), rtol=0, atol=1e-6)
    model = m.fit(model, ctx)
    fitted = logits(model)
    products = {key: layer.scale * layer.B.detach() @ layer.A.detach() for key, layer in wrapped(model).items()}
    model = m.finalize(model, ctx)
    torch.testing.assert_close(logits(model), fitted, rtol=1e-4, atol=1e-5)
    for key, delta in deltas(model, "tiny_llama").items():
        torch.testing.assert_close(delta, products[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [{}, {"pruning": "unst"}, {"align": 0.5}])
def test_the_pruned_variant_is_what_was_trained_and_main_comes_back(changes: dict[str, Any]) -> None:
    m, model, ctx = prepared("tiny_gpt2", **changes)
    model = m.fit(model, ctx)
    trained = logits(model)
    model = m.finalize(model, ctx)
    main = logits(model)
    seen = {name: logits(variant) for name, variant in m.variants(model, ctx)}
    assert list(seen) == ["main", "pruned"] and torch.equal(seen["main"], main)
    torch.testing.assert_close(seen["pruned"], trained, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(main, trained, atol=1e-3)
    assert torch.equal(logits(model), main)


@pytest.mark.parametrize("pruning", ["rand", "unst"])
def test_alignment_trains_the_pruned_model_lowers_its_loss_and_never_reaches_the_full_one(pruning: str) -> None:
    batch = batches(1)[0]
    _, plain, _ = prepared(pruning=pruning)
    m = Loram(Loram.Config(**BASE | {"pruning": pruning, "align": 0.5}))
    ctx = FakeContext(m, [batch] * 12)
    aligned = m.prepare(build("tiny_llama"), ctx)
    assert ctx.phases == ["align"]
    with torch.no_grad():
        assert aligned.eval()(**batch).loss < 0.5 * plain.eval()(**batch).loss
    if pruning == "unst":
        zero = {key: layer.stock().weight == 0 for key, layer in wrapped(aligned).items()}
        assert all(torch.equal(zero[key], ~mask) for key, mask in m.masks.items())
    model, base = m.finalize(aligned, ctx), snapshot(build("tiny_llama"))  # B is zero: nothing was tuned
    assert {name for name, p in model.named_parameters() if not torch.equal(p, base[name])} == {"score.weight"}


def test_trained_parameters_are_those_of_the_pruned_shapes() -> None:
    m, model, _ = prepared()
    shapes = [layer.stock().weight.shape for layer in wrapped(model).values()]
    own = sum(size for name, size in trainable(model).items() if name.endswith((".A", ".B")))
    assert own == sum(4 * sum(shape) for shape in shapes)
    assert sum(shape.numel() for shape in shapes) == m.measure(model, None)["pruned_map_weights"]


def test_a_pattern_is_needed_for_semi() -> None:
    with pytest.raises(UserError, match=r"method\.pruning=semi needs a pattern"):
        prepared(pruning="semi", pattern="unstructured")
    with pytest.raises(UserError, match=r"contradicts method\.pattern=4:8"):
        prepared(pruning="semi", ratio=0.7)
