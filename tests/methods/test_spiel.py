"""SpIEL: budgets, gradients, candidates, growth and seeded moments of both variants, resume within an accumulation, memory."""

from typing import Any

import pytest
import torch
from torch import nn

from methods.adapters.own_base import wrapped
from methods.maths.entry_adam import EntryAdamW
from methods.maths.partial import Entries
from methods.sparse.shira import SparseDelta
from methods.sparse.spiel import Spiel, budgets
from methods.spec import Diverged, UserError
from tests.methods.adapted import FAMILIES, check_half_precision, check_merge, check_start_and_training, count_on, prepared
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot
from tests.methods.sparse_memory import LAYERS, MAPS, dense_slopes, sgd, still, trained_bytes

DENSE = [name for name in FAMILIES if name != "tiny_mixtral"]
GROWTHS = ["ag", "ma"]


def spiel(**changes: object) -> Spiel:
    given = {"r": 3, "growth": "ag", "interval": 4, "accumulation": 2, "rate": 0.5, "policy": "linear", "targets": MAPS}
    return Spiel(Spiel.Config(**(given | changes)))


def trained(method: Spiel, name: str = "tiny_llama", steps: int = 8, **context: Any) -> tuple[nn.Module, FakeContext]:
    model, ctx = prepared(method, still(build(name)), steps=steps)
    for key, value in context.items():
        setattr(ctx, key, value)
    return FakeContext.train(ctx, model), ctx


def test_published_budget() -> None:
    """K = 159,907,840; every map rounds down, so less than one entry a map is missing."""
    count = count_on(spiel(r=64), "llama2_7b", classify=False)
    assert 159_907_840 - 32 * 7 < count <= 159_907_840


def test_budgets_are_shares_by_size() -> None:
    assert budgets({"a": (4, 6), "b": (2, 6)}, 1) == {"a": 12, "b": 6}
    assert budgets({"a": (5, 7), "b": (3, 3), "c": (2, 9)}, 1) == {"a": 29 * 35 // 62, "b": 29 * 9 // 62, "c": 29 * 18 // 62}
    with pytest.raises(UserError, match=r"method.r=3 asks for 54 of the 36 weights of the targets; give a smaller method.r"):
        budgets({"a": (4, 6), "b": (2, 6)}, 3)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("name", DENSE)
def test_start_and_training(name: str, growth: str) -> None:
    check_start_and_training(spiel(growth=growth), name, "values")


@pytest.mark.parametrize("name", DENSE)
def test_merge(name: str) -> None:
    check_merge(spiel(), name)


def test_half_precision() -> None:
    check_half_precision(spiel(), spiel())


def test_traits() -> None:
    assert spiel().config.adjust(Spiel.traits).distributed == () and spiel(growth="ma").config.adjust(Spiel.traits).distributed == ("ddp",)
    assert spiel(targets=["q"]).config.adjust(Spiel.traits).moe and not spiel().config.adjust(Spiel.traits).moe


@pytest.mark.parametrize("growth", GROWTHS)
def test_a_selection_without_learning_changes_no_logits(growth: str) -> None:
    model, ctx = prepared(spiel(growth=growth), still(build("tiny_llama")), steps=8)
    expected = logits(model)
    before = {key: set(layer.positions.tolist()) for key, layer in wrapped(model).items()}
    ctx.settings = type(ctx.settings)(0.0, 0.0, 0.1, 0.9, 0.999, 1e-8)
    FakeContext.train(ctx, model)
    assert torch.allclose(logits(model), expected, atol=1e-6)
    assert all(set(layer.positions.tolist()) != before[key] for key, layer in wrapped(model).items())


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_deberta"])
def test_indices_stay_unique_and_as_many(name: str, growth: str) -> None:
    method = spiel(growth=growth)
    model, ctx = prepared(method, build(name), steps=9)
    before = {key: set(layer.positions.tolist()) for key, layer in wrapped(model).items()}
    FakeContext.train(ctx, model)
    for key, layer in wrapped(model).items():
        now = set(layer.positions.tolist())
        assert len(now) == len(layer.positions) == method.counts[key] == len(layer.values) and now != before[key]
        assert min(now) >= 0 and max(now) < layer.out_features * layer.in_features


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_deberta"])
def test_gradient_is_the_dense_one_gathered(name: str) -> None:
    model, _ = prepared(spiel(), still(build(name)))
    batch = batches(1)[0]
    slopes = dense_slopes(still(build(name)), list(wrapped(model)), batch)
    model(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        assert torch.allclose(layer.values.grad, slopes[key].flatten()[layer.positions.long()], atol=1e-5) and layer.values.grad.any()


class Selections:
    """What every map was at each reselection: (step is the order) positions, values, state before and after, and the candidates."""

    def __init__(self, method: Spiel) -> None:
        self.seen: list[tuple[str, dict, dict, Any]] = []
        inner = method._reselect

        def spying(name: str, layer: nn.Module, count: int) -> None:
            before, candidates = self._look(method, layer), method.candidates.get(name)
            inner(name, layer, count)
            self.seen.append((name, before | {"count": count}, self._look(method, layer), candidates))

        method._reselect = spying

    @staticmethod
    def _look(method: Spiel, layer: nn.Module) -> dict[str, torch.Tensor]:
        state = method.moments.state[layer.values]
        return {"positions": layer.positions.clone(), "values": layer.values.detach().clone()} | {k: t.clone() for k, t in state.items()}


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_deberta"])
def test_with_one_update_the_largest_gradients_grow(name: str) -> None:
    """A = 1, all entries are dropped: the top |g| of the inactive ones come, active ones among the top stay."""
    method = spiel(accumulation=1)
    seen = Selections(method)
    model, ctx = prepared(method, still(build(name)), steps=2)
    slopes = dense_slopes(still(build(name)), list(wrapped(model)), ctx.rows[0])
    FakeContext.train(ctx, model)
    assert len(seen.seen) == len(method.layers)
    for key, before, after, _ in seen.seen:
        assert before["count"] == len(before["positions"])
        top = slopes[key].abs().flatten().argsort(descending=True)[: before["count"]]
        assert set(after["positions"].tolist()) == set(top.tolist())


def test_grown_entries_are_the_best_candidates_with_seeded_moments() -> None:
    method = spiel(accumulation=3, interval=4, rate=0.5)
    seen = Selections(method)
    model, ctx = prepared(method, still(build("tiny_llama")), steps=9)
    rows, slopes = ctx.rows, []
    ctx.rows = rows[:3]
    ctx.total_steps = 9
    ctx.probe = lambda m: slopes.append({k: layer.values.grad.clone() for k, layer in wrapped(m).items()})
    FakeContext.train(ctx, model)
    for _, before, after, candidates in seen.seen:
        kept = torch.isin(before["positions"].long(), after["positions"].long())
        grown = (~torch.isin(after["positions"].long(), before["positions"].long())).nonzero().flatten()
        assert grown.numel() and (after["values"][grown] == 0).all()
        best = candidates.positions[candidates.sums.abs().argsort(descending=True)]
        assert set(after["positions"].tolist()) == set(best.tolist())  # p = 1: all candidates, those that were active among them
        place = {p: i for i, p in enumerate(candidates.positions.tolist())}
        index = torch.tensor([place[p] for p in after["positions"][grown].tolist()])
        assert torch.allclose(after["m"][grown], (1 - 0.9**3) * candidates.sums[index] / 3)
        assert torch.allclose(after["v"][grown], (1 - 0.999**3) * candidates.squares[index] / 3)
        assert (after["t"] == 3).all()
        slots = kept.nonzero().flatten()
        for name in ("positions", "values", "m", "v", "t"):
            assert torch.equal(before[name][slots], after[name][slots])


def test_sums_of_candidates_are_those_of_their_gradients() -> None:
    """lr = 0: every update's g can be computed on the stock model."""
    method = spiel(accumulation=3, interval=4)
    seen = Selections(method)
    model, ctx = prepared(method, still(build("tiny_deberta")), steps=4)
    ctx.settings = type(ctx.settings)(0.0, 0.0, 0.0, 0.9, 0.999, 1e-8)
    keys = list(wrapped(model))
    slopes = [dense_slopes(still(build("tiny_deberta")), keys, batch) for batch in ctx.rows[:3]]
    FakeContext.train(ctx, model)
    assert seen.seen
    for key, before, _, candidates in seen.seen:
        first, *_ = grads = [slope[key].flatten() for slope in slopes]
        top = set(first.abs().argsort(descending=True)[: len(before["positions"])].tolist())
        assert set(candidates.positions.tolist()) == top
        gathered = torch.stack([g[candidates.positions] for g in grads])
        assert torch.allclose(candidates.sums, gathered.sum(0), atol=1e-6)
        assert torch.allclose(candidates.squares, gathered.square().sum(0), atol=1e-6)


def test_the_smallest_changes_are_dropped_and_lost() -> None:
    method = spiel(interval=4, accumulation=2, rate=0.5)
    seen = Selections(method)
    model, _ = trained(method, steps=12)
    later = [entry for entry in seen.seen[len(method.layers) :] if entry[0] == next(iter(method.layers))]
    assert [entry[1]["count"] for entry in later] == [int(0.5 * (1 - step / 12) * len(later[0][1]["values"])) for step in (6, 10)]
    for _, before, after, _ in later:
        dropped = ~torch.isin(before["positions"].long(), after["positions"].long())
        assert 0 < dropped.sum() <= before["count"]
        smallest = before["values"].abs().argsort(stable=True)[: before["count"]]
        assert set(dropped.nonzero().flatten().tolist()) <= set(smallest.tolist())
    layer = next(iter(wrapped(model).values()))
    moved = (layer.folded()[0] != layer.base_layer.weight).flatten().nonzero().flatten()
    assert set(moved.tolist()) <= set(layer.positions.tolist())


def test_ma_grows_by_rows_times_columns() -> None:
    method = spiel(growth="ma", rate=0.5)
    seen = Selections(method)
    trained(method, steps=8)
    for _, before, after, candidates in seen.seen:
        assert candidates is None and before["rows"].any()
        scores = torch.outer(before["rows"], before["columns"]).flatten()
        scores[before["positions"].long()] = -1
        expected = set(scores.argsort(descending=True, stable=True)[: before["count"]].tolist())
        grown = set(after["positions"].tolist()) - set(before["positions"].tolist())
        assert grown == expected
        assert torch.equal(before["rows"], after["rows"])


def test_ma_updates_are_those_of_sm3_on_the_dense_matrix() -> None:
    method = spiel(growth="ma", interval=100, accumulation=100)
    model, ctx = prepared(method, still(build("tiny_llama")), steps=3)
    layer = next(iter(wrapped(model).values()))
    index, shape = layer.positions.long(), (layer.out_features, layer.in_features)
    rows, columns, delta = torch.zeros(shape[0]), torch.zeros(shape[1]), torch.zeros(shape)
    optimizer = method.optimizer(model, ctx.settings)
    for batch in ctx.rows:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        g = torch.zeros(shape).flatten().scatter(0, index, layer.values.grad).view(shape)
        u = torch.minimum(rows[:, None], columns[None]) + g**2
        rows, columns = u.amax(1), u.amax(0)
        delta = (delta - 1e-2 * g / (u + 1e-8).sqrt()) * (1 - 1e-2 * 0.1)
        optimizer.step()
        assert torch.allclose(layer.values, delta.flatten()[index], atol=1e-6)
    state = optimizer.state[layer.values]
    assert torch.allclose(state["rows"], rows) and torch.allclose(state["columns"], columns)
    assert set(state) == {"rows", "columns"} and set(optimizer.state[model.score.weight]) == {"m", "v", "t"}


def test_decay_pulls_to_the_pretrained_weights() -> None:
    model, ctx = prepared(spiel(), build("tiny_bert"))
    optimizer = ctx.method.optimizer(model, ctx.settings)
    layer = next(iter(wrapped(model).values()))
    layer.values.data.fill_(1.0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(layer.values, torch.full_like(layer.values, 1 - 1e-2 * 0.1))
    assert isinstance(optimizer, EntryAdamW) and optimizer.state[layer.values]["t"].shape == layer.values.shape


def test_rates_fall_to_zero() -> None:
    linear, cosine = spiel(rate=0.2), spiel(rate=0.2, policy="cosine")
    assert [linear.rate(x) for x in (0.0, 0.5, 1.0)] == [0.2, 0.1, 0.0]
    assert [cosine.rate(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert cosine.rate(0.25) > linear.rate(0.25)


@pytest.mark.parametrize("growth", GROWTHS)
def test_nothing_is_dropped_after_the_last_update(growth: str) -> None:
    method = spiel(growth=growth, accumulation=2)
    model, _ = trained(method, steps=2)
    assert all(layer.values.any() and layer.watch is None for layer in wrapped(model).values()) and not method.candidates


def step_by_step(method: Spiel, model: nn.Module, ctx: FakeContext, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        method.on_step(model, step, ctx)
        optimizer.zero_grad()
        method.loss(model, ctx.rows[step], ctx).backward()
        method.on_gradients(model, step, ctx)
        optimizer.step()
        method.on_update(model, step + 1, ctx)


@pytest.mark.parametrize("growth", GROWTHS)
def test_resume_within_an_accumulation_is_exact(growth: str) -> None:
    """Stopped after update 6 of 9, in the accumulation of updates 5 to 7."""
    ends = []
    for stop in (None, 6):
        method = spiel(growth=growth, accumulation=3)
        model, ctx = prepared(method, still(build("tiny_llama")), steps=9)
        optimizer = method.optimizer(model, ctx.settings)
        step_by_step(method, model, ctx, optimizer, range(stop or 9))
        if stop:
            kept = {key: t.clone() for key, t in method.state_dict().items()}
            assert bool(kept) == (growth == "ag")
            tensors = snapshot(model) | {key: b.clone() for key, b in model.named_buffers()}
            state = optimizer.state_dict()
            method = spiel(growth=growth, accumulation=3)
            model, ctx = prepared(method, still(build("tiny_llama")), steps=9)
            method.load_state_dict(kept)
            with torch.no_grad():
                for key, tensor in (*model.named_parameters(), *model.named_buffers()):
                    tensor.copy_(tensors[key])
            optimizer = method.optimizer(model, ctx.settings)
            optimizer.load_state_dict(state)
            step_by_step(method, model, ctx, optimizer, range(stop, 9))
        ends.append(snapshot(model) | {key: b.clone() for key, b in model.named_buffers()})
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_micro_batches_count_as_one_update() -> None:
    """Two halves of a batch with half the weight each give the candidates' sums of the whole, whose choice is the first half's."""
    halves = {}
    for parts in (1, 2):
        method = spiel(accumulation=2)
        model, ctx = prepared(method, still(build("tiny_bert")), steps=2)
        method.optimizer(model, ctx.settings)
        method.on_step(model, 0, ctx)
        for half in range(parts):
            rows = slice(None) if parts == 1 else slice(2 * half, 2 * half + 2)
            (model(**{key: t[rows] for key, t in ctx.rows[0].items()}).loss / parts).backward()
        method.on_gradients(model, 0, ctx)
        halves[parts] = method.candidates
    for key, split in halves[2].items():
        whole = halves[1][key]
        common = torch.isin(split.positions, whole.positions)
        expected = dict(zip(whole.positions.tolist(), whole.sums.tolist(), strict=True))
        pairs = [(expected[p], s) for p, s in zip(split.positions[common].tolist(), split.sums[common].tolist(), strict=True)]
        assert pairs and [s for _, s in pairs] == pytest.approx([e for e, _ in pairs], abs=1e-6)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_fixed_indices_follow_the_path_of_shira_under_sgd(name: str) -> None:
    ours, _ = prepared(spiel(), still(build(name)))
    theirs, _ = prepared(spiel(), still(build(name)))
    for key, layer in wrapped(ours).items():
        theirs.set_submodule(key, SparseDelta(theirs.get_submodule(key).stock(), layer.positions.long()))
    sgd(ours, batches(4)), sgd(theirs, batches(4))
    for key, layer in wrapped(ours).items():
        assert torch.allclose(layer.values, theirs.get_submodule(key).values, atol=1e-5) and layer.values.abs().max() > 1e-3


def test_gradients_that_are_not_finite_end_the_cell() -> None:
    model, ctx = prepared(spiel(), build("tiny_bert"))
    model.bert.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with pytest.raises(Diverged, match=r"the gradient of .* is not finite"):
        FakeContext.train(ctx, model)


def test_memory_of_adapters_without_dense_gradients() -> None:
    """The paper: memory like LoRA's. ag has an age beside the moments (12 bytes an entry), ma a float a row and column."""
    lora, full = trained_bytes("lora", r=8), trained_bytes("full_ft")
    ag, ma = trained_bytes("spiel", r=8), trained_bytes("spiel", r=8, growth="ma")
    maps = LAYERS * (4 * 768 + 2 * 1920)
    entries = 8 * maps
    assert abs(ag["gradients"] - lora["gradients"]) <= 4 * 6 * LAYERS  # each map rounds down
    head = lora["optimizer"] - 8 * entries
    assert abs(ag["optimizer"] - 12 * entries - head) <= 1000 and abs(ma["optimizer"] - 4 * maps - head) <= 1000
    assert ma["optimizer"] < lora["optimizer"] < ag["optimizer"] < full["optimizer"] / 10
    assert ag["activations"] < full["activations"] and ag["total"] < full["total"] / 2


def test_an_index_has_four_bytes() -> None:
    model, _ = prepared(spiel(), build("tiny_bert"))
    assert {layer.positions.dtype for layer in wrapped(model).values()} == {torch.int32}
    assert all(isinstance(layer.part(), Entries) for layer in wrapped(model).values())


def test_bad_configurations() -> None:
    with pytest.raises(UserError, match=r"method.accumulation=5 is out of range; allowed: a number in \[1, 4\]"):
        spiel(accumulation=5)
    with pytest.raises(UserError, match=r"method.growth=sm3 is not allowed; allowed: ag, ma"):
        spiel(growth="sm3")
