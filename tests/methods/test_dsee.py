"""DSEE: unchanged start, N positions from W, S confined to them, group sparsities, PEFT's LoRA at N = 0, count, unmerged export."""

import copy

import pytest
import torch
from peft import LoraConfig

from methods.adapters.own_base import wrapped
from methods.adapters.peft_base import ADAPTER, wrap
from methods.adapters.wrapped import weight_and_bias
from methods.maths.grebsmo import support
from methods.prune.structured import groups as groups_of
from methods.roles import head_names, prunable_parameters, role_names, weight_is_transposed
from methods.sparse.dsee import Dsee, groups, prune
from methods.sparse.dsee_heads import Slices, moved
from methods.spec import Traits, UserError
from tests.methods.adapted import count_on, prepared, shake, weight_of
from tests.methods.fakes import batches, build, changed, logits, snapshot, trainable

FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"]


def dsee(**changes: object) -> Dsee:
    values = {
        "r": 3, "alpha": 6.0, "n": 7, "targets": ["q", "v"], "omega": "grebsmo", "rounds": 100, "threshold": 0.01, "sparsity": 0.5,
        "sparsity_adapted": 0.5, "rank_by": "update", "pruning": "unstructured", "share": 0.5, "merge": False, "heads": 1,
    }  # fmt: skip
    return Dsee(Dsee.Config(**(values | changes)))


def test_published_count() -> None:
    assert count_on(dsee(r=16, n=16), "bert_base") == 24 * (16 * 1536 + 16) == 590_208


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_unchanged_at_first_and_only_the_update_and_the_head_train(name: str) -> None:
    stock = build(name)
    expected, loaded = logits(stock), snapshot(stock)
    model, ctx = prepared(dsee(), stock)
    assert torch.equal(logits(model), expected)
    heads = head_names(model)
    assert all(key in heads or key.rpartition(".")[2] in ("up", "down", "values") for key in trainable(model))
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    assert ctx.phases == ["tune", "retune"]
    moved, pruned = changed(model, before), set(prunable_parameters(model))
    assert set(trainable(model)) <= moved <= set(trainable(model)) | pruned
    for key in pruned:
        now, then = model.get_parameter(key), loaded[key.replace(".base_layer", "")]
        assert torch.equal(now, torch.where(now == 0, 0, then))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_omega_has_n_ones_where_each_rule_says(name: str) -> None:
    for omega in ("grebsmo", "magnitude", "random"):
        model, ctx = prepared(dsee(omega=omega), build(name))
        stock = build(name)
        for key, layer in wrapped(model).items():
            weight = weight_of(stock.get_submodule(key))
            assert len(layer.positions.unique()) == 7 == len(layer.values)
            if omega == "magnitude":
                assert set(layer.positions.tolist()) == set(weight.abs().flatten().topk(7).indices.tolist())
            if omega == "grebsmo":
                mask = support(weight, 7, 100, 0.01, ctx.generator(f"{key}.omega"))
                assert torch.equal(mask.flatten().nonzero().flatten(), layer.positions)
    again, other = (prepared(dsee(omega="random"), build(name), seed)[0] for seed in (0, 1))
    same = [torch.equal(layer.positions, wrapped(other)[key].positions) for key, layer in wrapped(again).items()]
    assert not any(same) and all(torch.equal(layer.positions, wrapped(model)[key].positions) for key, layer in wrapped(again).items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sparse_part_stays_on_omega_under_decay(name: str) -> None:
    """The update less its low-rank part is zero elsewhere, also with the decay of AdamW; its gradient is the dense one's at Omega."""
    model, ctx = prepared(dsee(), build(name))
    ctx.settings = ctx.settings.__class__(1e-2, 1e-2, 5.0, 0.9, 0.999, 1e-8)
    ctx.method.fit(model, ctx)
    for layer in wrapped(model).values():
        with torch.no_grad():
            sparse = (layer.update() / layer.scale - layer.up @ layer.down).flatten()
        elsewhere = torch.ones(len(sparse), dtype=torch.bool)
        elsewhere[layer.positions] = False
        assert sparse[elsewhere].abs().max() < 1e-7 and layer.values.abs().min() > 0
        assert torch.allclose(sparse[layer.positions], layer.values, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_gradients_are_the_dense_ones_scaled(name: str) -> None:
    model, _ = prepared(dsee(), build(name))
    dense = build(name)
    batch = batches(1)[0]
    model.eval()(**batch).loss.backward()
    dense(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        slope = dense.get_submodule(key).weight.grad
        slope = slope.T if name == "tiny_gpt2" else slope
        assert torch.allclose(layer.values.grad, layer.scale * slope.flatten()[layer.positions], atol=1e-7)
        assert torch.allclose(layer.up.grad, layer.scale * slope @ layer.down.T, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_forward_pass_is_that_of_the_folded_weight(name: str) -> None:
    model, ctx = prepared(dsee(merge=True), build(name))
    shake(model)
    prune(model, 0.3, 0.6, "both")
    expected = logits(model)
    final = ctx.method.finalize(model, ctx)
    assert not wrapped(final) and type(final) is type(build(name))
    assert (logits(final) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("rank_by", ["update", "weight", "both"])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_group_loses_its_fraction_by_one_threshold(name: str, rank_by: str) -> None:
    model, ctx = prepared(dsee(), build(name))
    shake(model)
    scores: dict[str, list[torch.Tensor]] = {"adapted": [], "rest": []}
    kinds = {"update": lambda layer: layer.update(), "weight": lambda layer: weight_and_bias(layer.base_layer)[0]}
    kinds["both"] = lambda layer: kinds["weight"](layer) + kinds["update"](layer)
    for layer in wrapped(model).values():
        scores["adapted"].append(kinds[rank_by](layer).abs().flatten())
    scores["rest"] = [p.detach().abs().flatten() for p in groups(model)["rest"].values()]
    prune(model, 0.25, 0.6, rank_by)
    stocks = {"adapted": [layer.stock() for layer in wrapped(model).values()]}
    kept = {"adapted": [weight_of(module).flatten() != 0 for module in stocks["adapted"]]}
    kept["rest"] = [(p != 0).flatten() for p in groups(model)["rest"].values()]
    for group, fraction in (("adapted", 0.6), ("rest", 0.25)):
        ranked, mask = torch.cat(scores[group]), torch.cat(kept[group])
        assert (~mask).sum() == round(fraction * len(mask))
        assert ranked[mask].min() >= ranked[~mask].max()
    told = ctx.method.measure(model, ctx)
    sizes = {group: sum(len(part) for part in parts) for group, parts in kept.items()}
    assert told["prunable"] == sum(sizes.values()) == sum(p.numel() for p in prunable_parameters(build(name)).values())
    assert told["sparsity_adapted"] == pytest.approx(0.6, abs=1e-3) and told["sparsity_rest"] == pytest.approx(0.25, abs=1e-4)
    assert told["sparsity"] == pytest.approx((0.6 * sizes["adapted"] + 0.25 * sizes["rest"]) / told["prunable"], abs=1e-3)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_without_sparse_entries_it_is_pefts_lora(name: str) -> None:
    model, _ = prepared(dsee(n=0), build(name))
    shake(model)
    names = list(wrapped(model))
    theirs = wrap(build(name), LoraConfig(r=3, lora_alpha=6.0, target_modules=names, fan_in_fan_out=name == "tiny_gpt2"))
    with torch.no_grad():
        for key, layer in wrapped(model).items():
            other = theirs.base_model.model.get_submodule(key)
            other.lora_A[ADAPTER].weight.copy_(layer.down)
            other.lora_B[ADAPTER].weight.copy_(layer.up)
    assert (logits(model) - logits(theirs)).abs().max() <= 1e-6
    assert (logits(model) - logits(build(name))).abs().max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_export_keeps_zeros_and_updates_apart(name: str) -> None:
    method = dsee()
    model, ctx = prepared(method, build(name))
    ctx.method.fit(model, ctx)
    expected = logits(model)
    final = method.finalize(model, ctx)
    assert torch.equal(logits(final), expected) and all(p.requires_grad for p in final.parameters())
    stock, tensors = method.detach(copy.deepcopy(final))
    weights = prunable_parameters(stock)
    assert sum(int((p == 0).sum()) for p in weights.values()) / sum(p.numel() for p in weights.values()) == pytest.approx(0.5, abs=1e-3)
    assert type(stock) is type(build(name)) and set(stock.state_dict()) == set(build(name).state_dict())
    assert {key.rpartition(".")[0] for key in tensors} == set(role_names(build(name), ["q", "v"]))
    assert torch.equal(logits(dsee().attach(stock, tensors)), expected)


def test_half_precision_keeps_updates_in_float32_until_the_end() -> None:
    method = dsee()
    model, ctx = prepared(method, build("tiny_llama").bfloat16())
    heads = head_names(model)
    assert {p.dtype for key, p in model.named_parameters() if p.requires_grad and key not in heads} == {torch.float32}
    method.fit(model, ctx)
    assert {p.dtype for p in method.finalize(model, ctx).parameters()} == {torch.bfloat16}


def test_scale_is_on_both_parts() -> None:
    once, twice = (prepared(dsee(alpha=alpha), build("tiny_bert"))[0] for alpha in (3.0, 6.0))
    shake(once), shake(twice)
    for key, layer in wrapped(once).items():
        assert torch.allclose(2 * layer.update(), wrapped(twice)[key].update())


def test_traits() -> None:
    assert dsee().config.adjust(Dsee.traits) == Traits(randomness=("init", "mask"), folds=False, sparse=True)
    assert dsee(merge=True).config.adjust(Dsee.traits).folds
    assert not dsee(targets=["q", "down"]).config.adjust(Dsee.traits).moe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruning": "neurons"}, "method.pruning=neurons is not allowed; allowed: unstructured, heads"),
        ({"omega": "top"}, "method.omega=top is not allowed; allowed: grebsmo, random, magnitude"),
        ({"rank_by": "WAB"}, "method.rank_by=WAB is not allowed; allowed: update, weight, both"),
        ({"sparsity": 1.0}, r"method.sparsity=1.0 is out of range; allowed: a number in \[0, 1\)"),
        ({"share": 0.0}, r"method.share=0.0 is out of range; allowed: a number in \(0, 1\)"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dsee(**changes)


def test_more_positions_than_weights() -> None:
    with pytest.raises(UserError, match=r"method.n=1025 is more than the 1024 weights of .*query; give a smaller method.n"):
        prepared(dsee(n=1025), build("tiny_bert"))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_qwen2"])
def test_heads_with_the_smallest_updates_go_with_their_rows_and_columns(name: str) -> None:
    """What is left computes what the whole model computes with the values of those heads zeroed and their updates taken away."""
    model, ctx = prepared(dsee(pruning="heads"), build(name))
    shake(model, 0.05)
    whole = copy.deepcopy(model)
    kinds = [group for group in groups_of(copy.deepcopy(build(name))) if group.kind == "heads"]
    expected = {}
    for group in kinds:
        sums = torch.zeros(group.units)
        for key, layer in wrapped(whole).items():
            for unit, rows in enumerate(group.rows.get(key, torch.empty(0, 0, dtype=torch.long))):
                sums[unit] += layer.update()[rows].abs().sum()
        expected[group.key] = sorted(range(group.units), key=lambda u, s=sums: -float(s[u]))[: group.units - 1]
        (reader,) = group.columns
        gone = [u for u in range(group.units) if u not in expected[group.key]]
        module = whole.get_submodule(reader)
        matrix = module.weight.data.mT if weight_is_transposed(module) else module.weight.data
        matrix[:, group.columns[reader][gone].flatten()] = 0
    ctx.method._behead(model)
    assert {key: sorted(k) for key, k in expected.items()} == {
        key: index.tolist() for key, index in ctx.method.removal.kept.items() if key in expected
    }
    assert torch.allclose(logits(model), logits(whole), atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
    fitted = ctx.train(model, "retune")
    assert sum(len(layer.values) for layer in wrapped(fitted).values()) < sum(len(layer.values) for layer in wrapped(whole).values()) + 1


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("merge", [False, True])
def test_a_beheaded_model_comes_back_from_its_export(name: str, merge: bool) -> None:
    m = dsee(pruning="heads", merge=merge)
    model, ctx = prepared(m, build(name))
    model = m.finalize(m.fit(model, ctx), ctx)
    expected = logits(model)
    stock, tensors = m.detach(copy.deepcopy(model))
    assert not wrapped(stock)
    assert torch.equal(logits(dsee(pruning="heads", merge=merge).attach(stock, tensors)), expected)


def test_positions_follow_their_rows_and_columns() -> None:
    entries = torch.zeros(6, 5)
    positions = torch.tensor([1, 7, 12, 18, 24, 29])
    entries.view(-1)[positions] = torch.arange(1.0, 7.0)
    for rows, columns in ((torch.tensor([0, 2, 4, 5]), None), (None, torch.tensor([1, 2, 4]))):
        stays, new = moved(positions, 5, Slices(rows, columns))
        small = entries[rows] if rows is not None else entries[:, columns]
        again = torch.zeros(small.numel())
        again[new] = torch.arange(1.0, 7.0)[stays]
        assert torch.equal(again.view_as(small), small)


def test_removing_all_heads_or_heads_without_updates_is_refused() -> None:
    for changes, message in (({"heads": 9}, r"method\.heads=9 leaves nothing"), ({"targets": ["up"]}, r"give method\.targets=\[q,v\]")):
        model, ctx = prepared(dsee(pruning="heads", **changes), build("tiny_bert"))
        with pytest.raises(UserError, match=message):
            ctx.method.fit(model, ctx)
