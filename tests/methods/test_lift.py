"""LIFT: counts, masks after rank reduction, refreshes with their moments, dense AdamW as the limit, SHiRA as reference, memory."""

import pytest
import torch

from methods.adapters.own_base import wrapped
from methods.maths.entry_adam import EntryAdamW
from methods.sparse.lift import Lift, found
from methods.sparse.shira import SparseDelta
from methods.spec import Diverged, UserError
from tests.methods.adapted import FAMILIES, check_half_precision, check_merge, check_start_and_training, count_on, prepared, weight_of
from tests.methods.fakes import FakeContext, batches, build, snapshot
from tests.methods.sparse_memory import LAYERS, MAPS, dense_slopes, sgd, still, trained_bytes

DENSE = [name for name in FAMILIES if name != "tiny_mixtral"]


def lift(**changes: object) -> Lift:
    given = {"r": 3, "filter_rank": 4, "interval": 100, "iterations": None, "targets": MAPS}
    return Lift(Lift.Config(**(given | changes)))


def principal(weight: torch.Tensor, rank: int, count: int) -> set[int]:
    """The positions by torch's SVD and a full sort."""
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    scores = (u[:, :rank] @ s[:rank].diag() @ vt[:rank]).abs().flatten()
    return set(scores.argsort(descending=True)[:count].tolist())


def test_published_count() -> None:
    assert count_on(lift(r=128, filter_rank=64), "llama2_7b", classify=False) == 319_815_680


@pytest.mark.parametrize("name", DENSE)
def test_start_and_training(name: str) -> None:
    check_start_and_training(lift(), name, "values")


@pytest.mark.parametrize("name", DENSE)
def test_merge(name: str) -> None:
    check_merge(lift(), name)


def test_half_precision() -> None:
    check_half_precision(lift(), lift())


def test_traits() -> None:
    assert lift(targets=["q", "o"]).config.adjust(Lift.traits).moe and not lift().config.adjust(Lift.traits).moe
    assert lift(iterations=2).config.adjust(Lift.traits).randomness == ("mask",) and not lift().config.adjust(Lift.traits).randomness


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_masks_have_r_in_plus_out_principal_weights(name: str) -> None:
    stock = build(name)
    model, _ = prepared(lift(), build(name))
    for key, layer in wrapped(model).items():
        count = 3 * (layer.in_features + layer.out_features)
        assert len(layer.positions) == count and (layer.positions.diff() > 0).all()
        assert set(layer.positions.tolist()) == principal(weight_of(stock.get_submodule(key)), 4, count)


def test_of_a_matrix_of_that_rank_the_mask_is_the_magnitude_one() -> None:
    stock = build("tiny_bert")
    draws = torch.Generator().manual_seed(0)
    query = stock.bert.encoder.layer[0].attention.self.query
    query.weight.data = torch.randn(32, 4, generator=draws) @ torch.randn(4, 32, generator=draws)
    largest = set(query.weight.detach().abs().flatten().argsort(descending=True)[:192].tolist())
    model, _ = prepared(lift(targets=["q"]), stock)
    assert set(wrapped(model)["bert.encoder.layer.0.attention.self.query"].positions.tolist()) == largest


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_deberta"])
def test_gradient_is_the_dense_one_gathered(name: str) -> None:
    model, _ = prepared(lift(), still(build(name)))
    batch = batches(1)[0]
    slopes = dense_slopes(still(build(name)), list(wrapped(model)), batch)
    model(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        assert torch.allclose(layer.values.grad, slopes[key].flatten()[layer.positions.long()], atol=1e-6) and layer.values.grad.any()
        assert layer.base_layer.weight.grad is None


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_unmasked_weights_stay_between_refreshes(name: str) -> None:
    loaded = {key: weight_of(m) for key, m in build(name).named_modules() if getattr(m, "weight", None) is not None}
    model, ctx = prepared(lift(), build(name))
    masks = {key: layer.positions.tolist() for key, layer in wrapped(model).items()}
    final = ctx.method.finalize(ctx.method.fit(model, ctx), ctx)
    for key, positions in masks.items():
        moved = (weight_of(final.get_submodule(key)) != loaded[key]).flatten().nonzero().flatten().tolist()
        assert moved == positions


def refreshed(steps: int, interval: int, name: str = "tiny_llama", dtype: torch.dtype = torch.float32) -> tuple:
    """A model trained over refreshes; (model, method, [(positions, values, m, v) before and after each refresh of the first target])."""
    method = lift(interval=interval)
    model, ctx = prepared(method, build(name).to(dtype), steps=steps)
    seen, refresh = [], method._refresh

    def spying(layer, key, draws):
        look = lambda: [t.clone() for t in (layer.positions, layer.values, *list(method.adam.state[layer.values].values())[:2])]  # noqa: E731
        before, dense = look(), layer.folded()[0]
        refresh(layer, key, draws)
        seen.append((key, before, look(), dense, layer.folded()[0]))

    method._refresh = spying
    return method.fit(model, ctx), method, seen


def test_moments_follow_the_mask_at_a_refresh() -> None:
    _, method, seen = refreshed(3, 2)
    assert len(seen) == len(method.layers)  # before update 2, and not after the last
    changed = 0
    for _, (old, _, m, v), (new, _, m2, v2), dense, after in seen:
        before = {p: (a, b) for p, a, b in zip(old.tolist(), m.tolist(), v.tolist(), strict=True)}
        assert set(new.tolist()) == principal(dense, 4, len(new)) and (new.diff() > 0).all()
        now = list(zip(m2.tolist(), v2.tolist(), strict=True))
        assert now == [before.get(position, (0.0, 0.0)) for position in new.tolist()]
        changed += len(set(new.tolist()) - set(before))
        assert torch.equal(dense, after)
    assert changed > 0


def test_leavers_keep_their_values_and_the_moved_weights_grow_beyond_the_mask() -> None:
    loaded = build("tiny_llama")
    model, method, seen = refreshed(6, 2)
    assert len({key for key, *_ in seen}) == len(method.layers) and len(seen) == 3 * len(method.layers)
    layer = next(iter(wrapped(model).values()))
    key = next(iter(wrapped(model)))
    moved = (layer.folded()[0] != loaded.get_submodule(key).weight).sum()
    assert moved > len(layer.values)


def test_survivors_keep_float32_values_over_a_half_precision_base() -> None:
    _, _, seen = refreshed(3, 2, dtype=torch.bfloat16)
    for _, (old, values, *_), (new, values2, *_), *_ in seen:
        before = dict(zip(old.tolist(), values.tolist(), strict=True))
        pairs = [(before[p], value) for p, value in zip(new.tolist(), values2.tolist(), strict=True) if p in before]
        assert pairs and all(a == b for a, b in pairs)
        assert any(torch.tensor(a).bfloat16().item() != a for a, _ in pairs)


def test_the_state_carries_changed_base_weights() -> None:
    model, method, _ = refreshed(5, 2)
    twin, ctx = prepared(lift(interval=2), build("tiny_llama"), steps=5)
    ctx.method.load_state_dict({key: tensor.clone() for key, tensor in method.state_dict().items()})
    for (key, layer), other in zip(wrapped(model).items(), wrapped(twin).values(), strict=True):
        assert torch.equal(layer.base_layer.weight, other.base_layer.weight)
        assert not torch.equal(layer.base_layer.weight, build("tiny_llama").get_submodule(key).weight)
    plain, _ = prepared(lift(), build("tiny_llama"), steps=5)
    assert plain and lift_state(plain) == {}


def lift_state(model: torch.nn.Module) -> dict:
    method = lift()
    method.layers, method.refreshes = wrapped(model), False
    return method.state_dict()


def test_all_entries_give_the_dense_step() -> None:
    """K = in out: the same weights as dense AdamW with eps in the same place."""
    method = lift(r=32, targets=["q", "o"])
    model, ctx = prepared(method, still(build("tiny_bert")))
    dense = still(build("tiny_bert")).requires_grad_(False)
    keys = list(wrapped(model))
    weights = [dense.get_submodule(key).weight.requires_grad_(True) for key in keys]
    assert all(len(layer.values) == 32 * 32 for layer in wrapped(model).values())
    ours, theirs = method.optimizer(model, ctx.settings), EntryAdamW([{"params": weights, "weight_decay": 0.1}], 1e-2, (0.9, 0.999), 1e-8)
    model.classifier.requires_grad_(False), model.bert.pooler.requires_grad_(False)
    for batch in batches(3):
        for network, optimizer in ((model, ours), (dense, theirs)):
            optimizer.zero_grad()
            network(**batch).loss.backward()
            optimizer.step()
    start = build("tiny_bert")
    for key, weight in zip(keys, weights, strict=True):
        assert torch.allclose(wrapped(model)[key].folded()[0], weight, atol=1e-5)
        assert not torch.allclose(weight, start.get_submodule(key).weight, atol=1e-3)


def test_a_fixed_mask_follows_the_path_of_shira_under_sgd() -> None:
    ours, _ = prepared(lift(), still(build("tiny_llama")))
    theirs, _ = prepared(lift(), still(build("tiny_llama")))
    for key, layer in wrapped(ours).items():
        theirs.set_submodule(key, SparseDelta(theirs.get_submodule(key).stock(), layer.positions.long()))
    start = {key: layer.folded()[0] for key, layer in wrapped(ours).items()}
    sgd(ours, batches(4)), sgd(theirs, batches(4))
    for key, layer in wrapped(ours).items():
        assert torch.allclose(layer.folded()[0], theirs.get_submodule(key).folded()[0], atol=1e-5)
        assert not torch.allclose(layer.folded()[0], start[key], atol=1e-3)


def test_entries_decay_and_norms_do_not() -> None:
    model, ctx = prepared(lift(), build("tiny_bert"))
    groups = ctx.method.optimizer(model, ctx.settings).param_groups
    values = {id(layer.values) for layer in wrapped(model).values()}
    assert {id(p) for p in groups[0]["params"]} == values and groups[0]["weight_decay"] == 0.1
    assert all(group["weight_decay"] == (0.1 if p.ndim > 1 else 0.0) for group in groups[1:] for p in group["params"])


def test_memory_is_that_of_lora_at_the_same_rank_and_a_fraction_of_full_fine_tuning() -> None:
    """The paper: optimizer memory down to that of LoRA, 5 % of full fine-tuning's; activations are those of dense gradients."""
    own, lora, full = trained_bytes("lift", r=8), trained_bytes("lora", r=8), trained_bytes("full_ft")
    assert own["gradients"] == lora["gradients"]
    head = lora["optimizer"] - 8 * 8 * LAYERS * (4 * 768 + 2 * 1920)  # the same for all three
    assert own["optimizer"] <= lora["optimizer"] and own["optimizer"] - head < 0.05 * (full["optimizer"] - head)
    assert own["activations"] < full["activations"] and own["total"] < full["total"]


def test_no_dense_gradient_outlives_its_map() -> None:
    """The most that lives at once stays below full fine-tuning, whose gradients all live at the end."""
    own, full = trained_bytes("lift", r=8), trained_bytes("full_ft")
    assert own["step_peak"] - own["activations"] < full["gradients"]


def test_found() -> None:
    stays, slots = found(torch.tensor([0, 3, 5, 9]), torch.tensor([3, 4, 9]))
    assert stays.tolist() == [False, True, False, True] and slots[stays].tolist() == [0, 2]


def test_bad_configurations_and_weights() -> None:
    with pytest.raises(UserError, match=r"method.interval=0 is out of range"):
        lift(interval=0)
    method = lift(interval=2)
    model, ctx = prepared(method, build("tiny_bert"), steps=1)
    ctx.method.fit(model, ctx)
    layer = next(iter(wrapped(model).values()))
    layer.values.data[0] = torch.nan
    with pytest.raises(Diverged, match="the weights of here are not finite"):
        method._refresh(layer, "here", torch.Generator())


def test_the_randomised_form_trains() -> None:
    method = lift(iterations=1, interval=2)
    model, ctx = prepared(method, build("tiny_llama"))
    before = snapshot(model)
    model = FakeContext.train(ctx, model)
    assert any(not torch.equal(p, before[key]) for key, p in model.named_parameters() if key.endswith("values"))
    assert method.measure(model, ctx)["entries"] == sum(len(layer.values) for layer in wrapped(model).values())
