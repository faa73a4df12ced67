"""Magnitude and random pruning: the right weights in every family, zeros that stay zero in training, nothing left behind."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from methods.base import Method
from methods.prune.magnitude import Magnitude
from methods.prune.random_mask import RandomMask
from methods.roles import layers, prunable_parameters
from methods.spec import Traits, UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot

FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral", "tiny_opt"]


def method(kind: type[Method] = Magnitude, **changes: object) -> Method:
    values = {"sparsity": 0.5, "scope": "layer", "pattern": "unstructured", "retrain": True}
    schedule = {f.name: f.metadata["added"] for f in fields(kind.Config) if f.name not in values}
    return kind(kind.Config(**values | schedule | changes))


def prepared(m: Method, model: nn.Module, seed: int = 0) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(m, batches(4), seed=seed)
    return m.prepare(model, ctx), ctx


def canonical(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """(matrices, out, in), decided by class and dimension, not by the roles table."""
    owner = model.get_submodule(name.rpartition(".")[0])
    weight = weight.T if isinstance(owner, Conv1D) else weight
    return weight if weight.ndim == 3 else weight[None]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scope", ["row", "layer", "global"])
def test_keeps_exactly_the_largest_of_each_scope(name: str, scope: str) -> None:
    model = build(name, classify=False) if name != "tiny_bert" else build(name)
    before = snapshot(model)
    m = method(scope=scope, sparsity=0.75)
    prepared(m, model)
    kept, lost = [], []
    for key, weight in prunable_parameters(model).items():
        old, new = canonical(model, key, before[key]).abs(), canonical(model, key, weight.detach())
        zero = new == 0
        assert torch.equal(new[~zero].abs(), old[~zero])
        kept.append(old[~zero])
        lost.append(old[zero])
        if scope == "row":
            assert (zero.sum(-1) == round(0.75 * zero.shape[-1])).all()
            assert (old.masked_fill(zero, torch.inf).amin(-1) >= old.masked_fill(~zero, 0).amax(-1)).all()
        elif scope == "layer":
            assert (zero.sum((1, 2)) == round(0.75 * zero[0].numel())).all()
            assert (old.masked_fill(zero, torch.inf).amin((1, 2)) >= old.masked_fill(~zero, 0).amax((1, 2))).all()
    kept, lost = torch.cat(kept), torch.cat(lost)
    assert len(lost) == round(0.75 * (len(lost) + len(kept)))
    assert scope != "global" or kept.min() >= lost.max()
    assert changed(model, before) == set(prunable_parameters(model))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
@pytest.mark.parametrize("kind", [Magnitude, RandomMask])
def test_n_of_m_lies_along_the_inputs(name: str, kind: type[Method]) -> None:
    model = build(name, classify=False) if name != "tiny_bert" else build(name)
    prepared(method(kind, pattern="1:4", sparsity=0.75), model)
    for key, weight in prunable_parameters(model).items():
        groups = canonical(model, key, weight.detach()).unflatten(-1, (-1, 4))
        assert ((groups != 0).sum(-1) == 1).all()


def test_conv1d_rows_are_outputs() -> None:
    """gpt2's c_fc is kept as (in, out) = (32, 128): pruning 3 of 4 inputs leaves 8 in each column, not 32 in each row."""
    model = build("tiny_gpt2", classify=False)
    prepared(method(scope="row", sparsity=0.75), model)
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert weight.shape == (32, 128)
    assert ((weight != 0).sum(0) == 8).all()
    assert ((weight != 0).sum(1) != 32).any()


def test_exact_count_under_massive_ties() -> None:
    model = build("tiny_llama", classify=False)
    with torch.no_grad():
        for weight in prunable_parameters(model).values():
            weight.copy_((weight / weight.abs().max() * 4).round() / 4)
    m = method(retrain=False)
    before = sum(int((w == 0).sum()) for w in prunable_parameters(model).values())
    model, ctx = prepared(m, model)
    masks = {n: b for n, b in model.named_buffers() if n.endswith("weight_mask")}
    assert len(masks) == 14
    assert all(int(mask.sum()) * 2 == mask.numel() for mask in masks.values())
    measured = m.measure(model, ctx)
    zeros = sum(int((w == 0).sum()) for w in prunable_parameters(model).values())
    assert measured["zeros_before"] == before > 0
    assert measured["sparsity"] == zeros / measured["prunable"] >= 0.5


@pytest.mark.parametrize("kind", [Magnitude, RandomMask])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_zeros_stay_zero_under_adamw_and_the_rest_trains(name: str, kind: type[Method]) -> None:
    m = method(kind)
    model, ctx = prepared(m, build(name))
    before = snapshot(model)
    weights = prunable_parameters(model)
    pattern = {key: weight == 0 for key, weight in weights.items()}

    def masked_before_clipping(model: nn.Module) -> None:
        for key, weight in weights.items():
            assert weight.grad[pattern[key]].abs().max() == 0
            assert weight.grad[~pattern[key]].abs().max() > 0

    ctx.probe = masked_before_clipping
    model = m.fit(model, ctx)
    assert ctx.phases == ["main"]
    for key, weight in weights.items():
        assert torch.equal(weight == 0, pattern[key])
        assert int(pattern[key].sum()) * 2 == weight.numel()
    assert set(weights) <= changed(model, before)
    assert m.measure(model, ctx)["sparsity"] == 0.5


def test_without_retraining_nothing_is_trained() -> None:
    m = method(retrain=False)
    model, ctx = prepared(m, build("tiny_llama", classify=False))
    before = snapshot(model)
    m.fit(model, ctx)
    assert ctx.phases == [] and changed(model, before) == set()


def test_weights_revived_by_an_optimizer_are_zero_again() -> None:
    """Momentum from before the mask would move masked weights; `on_update` must undo it, and must not hide a NaN."""
    m = method()
    model, ctx = prepared(m, build("tiny_bert"))
    weight = model.bert.encoder.layer[0].output.dense.weight
    pattern = weight.detach() == 0
    with torch.no_grad():
        weight.add_(1.0)
    m.on_update(model, 1, ctx)
    assert torch.equal(weight == 0, pattern)
    with torch.no_grad():
        weight[pattern] = torch.nan
    m.on_update(model, 2, ctx)
    assert weight[pattern].isnan().all()


@pytest.mark.parametrize("retrain", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_finalize_leaves_a_stock_model(name: str, retrain: bool) -> None:
    stock = build(name, classify=False) if name != "tiny_bert" else build(name)
    keys, kind = list(stock.state_dict()), type(stock)
    m = method(retrain=retrain)
    model, ctx = prepared(m, stock)
    assert set(model.state_dict()) - set(keys)
    assert {p.requires_grad for p in model.parameters()} == {retrain}
    expected = logits(model)
    assert m.fit(model, FakeContext(m, [])) is model
    final = m.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.equal(logits(final), expected)
    for weight in prunable_parameters(final).values():
        assert not weight._backward_hooks
        assert int((weight == 0).sum()) * 2 == weight.numel()


def test_random_mask_follows_its_seed_and_not_the_weights() -> None:
    def pattern(model_seed: int, seed: int) -> Tensor:
        model, _ = prepared(method(RandomMask), build("tiny_bert", seed=model_seed), seed)
        return torch.cat([(w == 0).flatten() for w in prunable_parameters(model).values()])

    first = pattern(0, 0)
    assert torch.equal(first, pattern(1, 0))
    same = (first == pattern(0, 1)).float().mean().item()
    assert same == pytest.approx(0.5, abs=0.02)
    magnitude, _ = prepared(method(), build("tiny_bert"))
    largest = torch.cat([(w == 0).flatten() for w in prunable_parameters(magnitude).values()])
    assert (first == largest).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_meta_device_needs_no_weights() -> None:
    model, _ = prepared(method(scope="global"), build("bert_base", device="meta"))
    masks = [b for n, b in model.named_buffers() if n.endswith("_mask")]
    assert sum(mask.numel() for mask in masks) == 84_934_656


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_allocations_keep_the_whole_and_follow_the_scores(name: str) -> None:
    with torch.no_grad():
        model = build(name)
        first, second = (block for block in layers(model))
        for block, factor in ((first, 1.0), (second, 3.0)):
            for module in block.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    module.weight *= factor
    weights = {key: value.clone() for key, value in prunable_parameters(model).items()}
    everywhere = method(allocation="global")
    model, ctx = prepared(everywhere, model)
    threshold = torch.cat([w.abs().flatten() for w in weights.values()]).double().quantile(0.5)
    for key, share in everywhere.measure(model, ctx)["sparsity_by_parameter"].items():
        assert share == pytest.approx(float((weights[key].abs().double() <= threshold).double().mean()), abs=0.01)
    owl = method(allocation="owl", owl_reach=0.1)
    model, ctx = prepared(owl, build(name))
    measured = owl.measure(model, ctx)
    assert measured["sparsity"] == pytest.approx(0.5, abs=0.02)
    shares = sorted({round(s, 2) for s in measured["sparsity_by_parameter"].values()})
    assert shares[-1] - shares[0] == pytest.approx(0.2, abs=0.02)  # two blocks: the ends of 2 lambda
    assert ctx.phases == ["calibrate"]


def test_allocation_is_for_one_shot_within_layers() -> None:
    assert Magnitude.Config(**{**vars(method(allocation="owl").config)}).adjust(Magnitude.traits).calibration
    for changes in ({"when": "gradual"}, {"scope": "global"}, {"pattern": "2:4"}):
        with pytest.raises(UserError, match=r"allocation"):
            method(allocation="owl", **changes)


def test_traits_and_shared_configuration() -> None:
    assert [f.name for f in fields(Magnitude.Config) if "added" not in f.metadata] == [f.name for f in fields(RandomMask.Config)]
    one_shot = method(retrain=False).config.adjust(Magnitude.traits)
    assert one_shot == Traits(exact_at_init=False, sparse=True, trains=False, gradients=False)
    assert method().config.adjust(Magnitude.traits) == Magnitude.traits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": -0.1}, r"method.sparsity=-0.1 is out of range; allowed: a number in \[0, 1\)"),
        ({"sparsity": 1.0}, "method.sparsity=1.0 is out of range"),
        ({"scope": "rows"}, "method.scope=rows is not allowed; allowed: row, layer, global"),
        ({"pattern": "4:2"}, "method.pattern=4:2 is not allowed"),
        ({"pattern": "0:4"}, "method.pattern=0:4 is not allowed"),
        ({"pattern": "2of4"}, "method.pattern=2of4 is not allowed"),
        ({"pattern": "1:4"}, "method.sparsity=0.5 contradicts method.pattern=1:4; give method.sparsity=0.75"),
    ],
)
@pytest.mark.parametrize("kind", [Magnitude, RandomMask])
def test_bad_configurations(kind: type[Method], changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(kind, **changes)


def test_pattern_that_does_not_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"method.pattern=3:6 needs input widths divisible by 6; bert.* of bert has 32"):
        prepared(method(pattern="3:6"), build("tiny_bert"))
