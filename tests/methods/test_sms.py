"""Sparse soups: shared masks, exact counts, what members differ in, greedy never worse than its best, one member is iterative pruning."""

import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.maths.soup import average, distances, greedy
from methods.prune.magnitude import Magnitude
from methods.prune.sms import Sms
from methods.roles import prunable_parameters
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot

BASE = {"sparsity": 0.7, "scope": "layer", "cycles": 2, "members": 3, "vary": "order", "spread": 2.0, "soup": "uniform"}


class Watching(FakeContext):
    """Keeps the state before and after every phase, and scores as it is told."""

    def __init__(self, method: Sms, scores: Any = None) -> None:
        super().__init__(method, batches(5), lr=3e-3)
        self.starts: dict[str, dict] = {}
        self.ends: dict[str, dict] = {}
        self.rates: dict[str, tuple[float, float]] = {}
        self.scorer = scores

    def train(self, model: nn.Module, phase: str = "main", **options: Any) -> nn.Module:
        assert not options["select"]
        self.starts[phase] = snapshot(model)
        model = super().train(model, phase, **options)
        group = self.optimizer.param_groups[0]
        self.ends[phase], self.rates[phase] = snapshot(model), (group["lr"], group["weight_decay"])
        return model

    def score(self, model: nn.Module) -> float:
        return self.scorer(model)


def cooked(name: str = "tiny_bert", scores: Any = None, **changes: Any) -> tuple[Sms, nn.Module, Watching]:
    m = Sms(Sms.Config(**BASE | changes))
    ctx = Watching(m, scores)
    return m, m.fit(m.prepare(build(name), ctx), ctx), ctx


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"])
def test_members_share_a_start_and_a_mask_and_the_soup_keeps_both(name: str) -> None:
    _, model, ctx = cooked(name)
    for cycle in (1, 2):
        ends = [ctx.ends[f"cycle-{cycle}-member-{i}"] for i in (1, 2, 3)]
        starts = [ctx.starts[f"cycle-{cycle}-member-{i}"] for i in (1, 2, 3)]
        soup = ctx.starts["cycle-2-member-1"] if cycle == 1 else snapshot(model)
        for key in starts[0]:
            assert torch.equal(starts[0][key], starts[1][key]) and torch.equal(starts[0][key], starts[2][key])
        for key in prunable_parameters(model):
            zeros = [end[key] == 0 for end in ends]
            assert torch.equal(zeros[0], zeros[1]) and torch.equal(zeros[0], zeros[2])
            share = 1 - (1 - 0.7) ** (cycle / 2)
            matrices = zeros[0][..., 0, 0].numel()  # each rounds its own count
            assert int(zeros[0].sum()) == pytest.approx(share * zeros[0].numel(), abs=0.5 * matrices)
            mean = np.mean([end[key].double().numpy() for end in ends], axis=0)
            kept = (soup[key] != 0).numpy()
            assert np.allclose(soup[key].numpy()[kept], mean[kept], atol=1e-7)
        assert any(not torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_separate_masks_would_lose_sparsity_when_averaged() -> None:
    a, b = (snapshot(cooked(members=1, cycles=1, sparsity=0.5)[1]) for _ in (0, 1))
    other = {key: value.roll(1, -1) for key, value in b.items()}
    zeros = lambda state: sum(int((state[key] == 0).sum()) for key in prunable_parameters(build("tiny_bert")))  # noqa: E731
    assert zeros(average([a, b])) == zeros(a)
    assert zeros(average([a, other])) < 0.6 * zeros(a)


def test_one_member_is_iterative_magnitude_pruning() -> None:
    _, model, _ = cooked(members=1)
    schedule = {f.name: f.metadata["added"] for f in fields(Magnitude.Config) if "added" in f.metadata}
    plain = {"sparsity": 0.7, "scope": "layer", "pattern": "unstructured", "retrain": True}
    m = Magnitude(Magnitude.Config(**schedule | plain | {"when": "iterative", "cycles": 2}))
    ctx = FakeContext(m, batches(5), lr=3e-3)
    reference = m.fit(m.prepare(build("tiny_bert"), ctx), ctx)
    for (name, a), (_, b) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("vary", ["lr", "weight_decay"])
def test_members_differ_in_one_setting(vary: str) -> None:
    _, _, ctx = cooked(vary=vary, spread=4.0)
    lr, decay = ctx.settings.lr, ctx.settings.weight_decay
    rates = [ctx.rates[f"cycle-2-member-{i}"] for i in (1, 2, 3)]
    factors = (0.25, 1.0, 4.0)
    expected = [(lr * f, decay) for f in factors] if vary == "lr" else [(lr, decay * f) for f in factors]
    assert np.allclose(rates, expected)


def test_equal_members_average_to_themselves_and_distances_are_euclidean() -> None:
    state = {"w": torch.randn(7, 5), "b": torch.randn(3)}
    assert all(torch.allclose(value, state[key], atol=1e-7) for key, value in average([state] * 3).items())
    states = [{key: torch.randn(value.shape) for key, value in state.items()} for _ in range(4)]
    points = [np.concatenate([tensor.double().numpy().ravel() for tensor in s.values()]) for s in states]
    found = distances(states)
    assert found["between_members"] == pytest.approx(max(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)), rel=1e-5)
    assert found["to_average"] == pytest.approx(max(np.linalg.norm(p - np.mean(points, 0)) for p in points), rel=1e-5)


def test_bfloat16_is_averaged_in_float32() -> None:
    states = [{"w": torch.full((4,), value, dtype=torch.bfloat16)} for value in (256.0, 1.0, 1.0)]
    assert torch.equal(average(states)["w"], torch.full((4,), 86.0, dtype=torch.bfloat16))


def test_greedy_soup_is_never_worse_than_its_best_member() -> None:
    draws = np.random.default_rng(0)
    for _ in range(50):
        values = draws.normal(size=4).tolist()
        table = {frozenset(c): draws.normal() for n in (2, 3, 4) for c in itertools.combinations(range(4), n)}
        score = lambda chosen, table=table, values=values: values[chosen[0]] if len(chosen) == 1 else table[frozenset(chosen)]  # noqa: E731
        chosen = greedy(values, score)
        assert score(chosen) >= max(values)
        assert chosen[0] == int(np.argmax(values))
    assert greedy([0.5, 0.9, 0.7], lambda chosen: {2: 0.8, 3: 1.0}[len(chosen)]) == [1]
    assert greedy([0.5, 0.9, 0.7], lambda chosen: 0.9) == [1, 2, 0]


def test_the_greedy_soup_of_a_model_is_the_one_that_scores_best() -> None:
    def score(model: nn.Module) -> float:
        return -float(logits(model).sub(1.0).square().mean())

    m, model, ctx = cooked(soup="greedy", scores=score, cycles=1, vary="lr", spread=8.0)
    singles = []
    probe = build("tiny_bert")
    for i in (1, 2, 3):
        probe.load_state_dict(ctx.ends[f"cycle-1-member-{i}"], strict=False)
        singles.append(score(probe))
    assert score(model) >= max(singles)
    assert m.chosen[0] == int(np.argmax(singles))


def test_variants_are_the_members_and_the_model_is_the_soup_again() -> None:
    m, model, ctx = cooked()
    soup = snapshot(m.finalize(model, ctx))
    seen = {name: snapshot(variant) for name, variant in m.variants(model, ctx)}
    assert list(seen) == ["main", "member-1", "member-2", "member-3"]
    for i in (1, 2, 3):
        assert all(torch.equal(value, ctx.ends[f"cycle-2-member-{i}"][key]) for key, value in seen[f"member-{i}"].items())
    assert all(torch.equal(value, soup[key]) for key, value in snapshot(model).items())
    assert m.measure(model, ctx)["soup"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": 0}, "method.members=0"),
        ({"soup": "stew"}, "uniform, greedy"),
        ({"vary": "lr", "spread": 1.0}, "give method.spread=2"),
        ({"scope": "all"}, "method.scope"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sms.Config(**BASE | changes)
