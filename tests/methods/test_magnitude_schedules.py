"""Iterative and gradual magnitude pruning: cumulative counts, masks that only shrink, dense masters that come back, rewinding."""

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from harness.typed import plain
from methods.maths.masks import kept
from methods.prune.magnitude import Magnitude
from methods.roles import prunable_parameters
from methods.spec import Diverged, UserError
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot

GRADUAL = {"when": "gradual", "interval": 1}


def magnitude(**changes: object) -> Magnitude:
    values = {"sparsity": 0.8, "scope": "layer", "pattern": "unstructured", "retrain": True}
    added = {f.name: f.metadata["added"] for f in fields(Magnitude.Config) if f.name not in values}
    return Magnitude(Magnitude.Config(**values | added | changes))


class Watching(FakeContext):
    """Notes the zeros after every update, and what was asked of every phase."""

    def __init__(self, method: Magnitude, steps: int) -> None:
        super().__init__(method, batches(steps))
        self.zeros: list[dict[str, Tensor]] = []
        self.asked: list[tuple[str, float, bool]] = []
        self.started: list[dict[str, Tensor]] = []
        self.ended: list[dict[str, Tensor]] = []
        update = method.on_update

        def watched(model: nn.Module, step: int, ctx: object) -> None:
            update(model, step, ctx)
            self.zeros.append(zeros(model))

        method.on_update = watched

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True) -> nn.Module:
        self.asked.append((phase, share, select))
        self.started.append(snapshot(model))
        super().train(model, phase, share=share, select=select)
        self.ended.append(snapshot(model))
        return model


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() == 0 for name, weight in prunable_parameters(model).items()}


def run(method: Magnitude, name: str = "tiny_bert", steps: int = 4) -> tuple[nn.Module, Watching]:
    ctx = Watching(method, steps)
    torch.manual_seed(0)
    model = method.prepare(build(name), ctx)
    return method.fit(model, ctx), ctx


# Iterative


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_every_cycle_prunes_the_same_share_of_what_is_left(name: str, cycles: int) -> None:
    """Cumulative 1 - (1 - s)^(i / P): of 1024 entries 598, then 674 ... and exactly s at the end; masks only shrink."""
    method = magnitude(when="iterative", cycles=cycles)
    _, ctx = run(method, name, steps=2)
    assert ctx.asked == [(f"cycle-{i}", 1 / cycles, i == cycles) for i in range(1, cycles + 1)]
    for key, last in ctx.zeros[-1].items():
        n, matrices = (last[0] if last.ndim == 3 else last).numel(), last.shape[0] if last.ndim == 3 else 1
        left = n
        for cycle in range(cycles):
            left = left * (1 - 0.8) ** (1 / cycles)
            now, after = ctx.zeros[2 * cycle][key], ctx.zeros[2 * cycle + 1][key]
            assert torch.equal(now, after)
            assert int(now.sum()) == matrices * round(n - left)
            assert cycle == 0 or (now | ~ctx.zeros[2 * cycle - 1][key]).all()
        assert int(last.sum()) == matrices * (n - kept(n, 0.8))


def test_a_cycle_prunes_the_smallest_of_the_trained_weights() -> None:
    """As torch's iterative pruning of the same weights, matrix by matrix."""
    method = magnitude(when="iterative", cycles=2)
    _, ctx = run(method, steps=2)
    key = "bert.encoder.layer.0.output.dense.weight"
    for before, after in ((snapshot(build("tiny_bert")), ctx.started[0]), (ctx.ended[0], ctx.started[1])):
        expected = nn.Linear(64, 32, bias=False)
        expected.weight = nn.Parameter(before[key])
        prune.l1_unstructured(expected, "weight", amount=int((after[key] == 0).sum()))
        assert torch.equal(expected.weight, after[key])
    assert int((ctx.started[0][key] == 0).sum()) < int((ctx.started[1][key] == 0).sum()) == round(0.8 * 2048)


@pytest.mark.parametrize("rewind", ["none", "weights"])
def test_rewinding_starts_every_cycle_from_the_loaded_weights(rewind: str) -> None:
    loaded = snapshot(build("tiny_bert"))
    _, ctx = run(magnitude(when="iterative", cycles=2, rewind=rewind), steps=2)
    second = ctx.started[1]
    back = [torch.equal(second[key], loaded[key] * (second[key] != 0) if key in ctx.zeros[0] else loaded[key]) for key in loaded]
    assert all(back) if rewind == "weights" else not any(back[: len(back) // 2])


def test_n_m_patterns_are_reached_in_whole_steps() -> None:
    """2:4 in two cycles passes 3:4, since 1 - sqrt(1/2) of 4 is one."""
    _, ctx = run(magnitude(when="iterative", cycles=2, pattern="2:4", sparsity=0.5), steps=1)
    for cycle, pruned in enumerate((1, 2)):
        assert all((mask.unflatten(-1, (-1, 4)).sum(-1) == pruned).all() for mask in ctx.zeros[cycle].values())


# Gradual


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_the_ramp_has_exact_counts_and_ends_in_a_fixed_pattern(name: str, regrow: bool) -> None:
    """T = 10, 1 dense update, 3 at the end: s(t) = 0.8 - 0.8 (1 - (t - 1) / 6)^3."""
    method = magnitude(**GRADUAL, allow_regrow=regrow)
    model, ctx = run(method, name, steps=10)
    for key, weight in prunable_parameters(model).items():
        n = weight[0].numel() if weight.ndim == 3 else weight.numel()
        for step, now in enumerate((z[key] for z in ctx.zeros), start=1):
            s = 0.0 if step <= 1 else 0.8 if step > 7 else 0.8 - 0.8 * (1 - (step - 1) / 6) ** 3
            assert int(now.sum()) == round(s * n) * (weight.numel() // n)
        history = [z[key] for z in ctx.zeros]
        assert all(torch.equal(z, history[7]) for z in history[7:])
        assert regrow or all((later | ~earlier).all() for earlier, later in pairwise(history))
    assert [step for step in range(1, 11) if method.eligible(step, ctx)] == [8, 9, 10]


def test_masks_are_made_at_intervals_and_once_when_the_ramp_ends() -> None:
    method = magnitude(**GRADUAL | {"interval": 3})
    _, ctx = run(method, steps=10)
    shares = [next(iter(z.values())).float().mean().item() for z in ctx.zeros]
    changes = [step for step, (a, b) in enumerate(zip([0.0, *shares], shares, strict=False), start=1) if a != b]
    assert changes == [3, 6, 8]
    assert shares[2] == pytest.approx(method.level(3, 10), abs=1e-3) and shares[-1] == pytest.approx(0.8, abs=1e-3)


def test_pruned_weights_keep_their_value_and_come_back() -> None:
    """A kept weight that shrinks below a pruned one gives it its place; what returns has the value that it was pruned with."""
    method = magnitude(**GRADUAL, initial_sparsity=0.5)
    ctx = FakeContext(method, batches(10))
    loaded = snapshot(build("tiny_gpt2"))
    model = method.prepare(build("tiny_gpt2"), ctx)
    name = "transformer.h.0.mlp.c_fc.weight"
    weight, pruned = prunable_parameters(model)[name], prunable_parameters(model)[name] == 0
    assert int(pruned.sum()) * 2 == weight.numel()
    with torch.no_grad():
        weight.mul_(1e-6)
    method.on_update(model, 1, ctx)
    back = (weight != 0) & pruned
    assert int(back.sum()) * 2 == weight.numel() and torch.equal(weight[back], loaded[name][back])
    strict = magnitude(**GRADUAL, initial_sparsity=0.5, allow_regrow=False)
    model = strict.prepare(build("tiny_gpt2"), ctx)
    with torch.no_grad():
        prunable_parameters(model)[name].mul_(1e-6)
    strict.on_update(model, 1, ctx)
    assert torch.equal(prunable_parameters(model)[name] == 0, pruned)


def test_exact_zeros_among_kept_weights_do_not_revive_pruned_ones() -> None:
    method = magnitude(**GRADUAL, initial_sparsity=0.5, allow_regrow=False, sparsity=0.5)
    ctx = FakeContext(method, batches(10))
    model = method.prepare(build("tiny_bert"), ctx)
    masks = {n: b.clone() for n, b in model.named_buffers() if n.endswith("_mask")}
    with torch.no_grad():
        for weight in prunable_parameters(model).values():
            weight.zero_()
    method.on_update(model, 1, ctx)
    assert all(torch.equal(b, masks[n]) for n, b in model.named_buffers() if n.endswith("_mask"))


@pytest.mark.parametrize("regrow", [True, False])
def test_finalize_leaves_a_stock_model(regrow: bool) -> None:
    method = magnitude(**GRADUAL, allow_regrow=regrow)
    stock = build("tiny_gpt2")
    keys = list(stock.state_dict())
    ctx = FakeContext(method, batches(3))
    model = method.prepare(stock, ctx)
    assert any(key.endswith("_pruned") for key in model.state_dict()) == regrow
    model = method.fit(model, ctx)
    expected = logits(model)
    final = method.finalize(model, ctx)
    assert list(final.state_dict()) == keys and torch.equal(logits(final), expected)
    assert not any(weight._backward_hooks for weight in prunable_parameters(final).values())


def test_global_scope_and_patterns_ramp_too() -> None:
    model, _ = run(magnitude(**GRADUAL, scope="global"), steps=3)
    total = sum(w.numel() for w in prunable_parameters(model).values())
    assert sum(int(z.sum()) for z in zeros(model).values()) == round(0.8 * total)
    model, ctx = run(magnitude(**GRADUAL, pattern="2:4", sparsity=0.5), steps=10)
    assert all((z.unflatten(-1, (-1, 4)).sum(-1) == 2).all() for z in zeros(model).values())
    assert {int(z.unflatten(-1, (-1, 4)).sum(-1).max()) for step in ctx.zeros for z in step.values()} == {0, 1, 2}


def test_a_nan_weight_is_divergence() -> None:
    method = magnitude(**GRADUAL)
    ctx = FakeContext(method, batches(3))
    model = method.prepare(build("tiny_bert"), ctx)
    with torch.no_grad():
        next(iter(prunable_parameters(model).values()))[0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"query\.weight became NaN"):
        method.on_update(model, 2, ctx)


# Configuration


def test_cells_of_one_shot_keep_their_identity() -> None:
    assert plain(magnitude().config) == {"sparsity": 0.8, "scope": "layer", "pattern": "unstructured", "retrain": True}
    assert plain(magnitude(when="gradual").config)["when"] == "gradual"


def test_ramps_from_zero_start_at_the_loaded_model() -> None:
    expected = logits(build("tiny_bert"))
    for changes in (GRADUAL, {"when": "iterative"}):
        method = magnitude(**changes)
        assert method.config.adjust(Magnitude.traits).exact_at_init
        assert torch.equal(logits(method.prepare(build("tiny_bert"), FakeContext(method, []))), expected)
    assert not magnitude(**GRADUAL, initial_sparsity=0.1).config.adjust(Magnitude.traits).exact_at_init


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"when": "never"}, "method.when=never is not allowed; allowed: one_shot, iterative, gradual"),
        ({"when": "gradual", "retrain": False}, "method.when=gradual prunes while it trains; give method.retrain=true or"),
        ({"rewind": "lr"}, "method.rewind=lr is not allowed; allowed: none, weights"),
        ({"cycles": 0}, "method.cycles=0 is out of range"),
        ({"interval": 0}, "method.interval=0 is out of range"),
        ({"initial_sparsity": 0.9}, r"method.initial_sparsity=0.9 is out of range; allowed: a number in \[0, 0.8\]"),
        ({"initial_warmup": 0.8}, r"method.final_warmup=0.3 is out of range; allowed: a number in \[0, 0.2\]"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        magnitude(**changes)
