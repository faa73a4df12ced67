"""AdaLoRA: counts, formula, the penalty, the schedule and its scores against an independent implementation, resume, export."""

import copy

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.adalora import AdaLora
from methods.adapters.peft_base import ADAPTER, adapted
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    adapter_count,
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
from tests.methods.fakes import batches, build, snapshot

VALUES = {"init_r": 6, "target_r": 2, "alpha": 12.0, "dropout": 0.0, "targets": ["q", "v"], "warmup": 0.1, "final": 0.4, "interval": 2}
AVERAGED = {"beta1": 0.85, "beta2": 0.8, "orthogonality": 0.1}


def adalora(**changes: object) -> AdaLora:
    return AdaLora(AdaLora.Config(**(VALUES | AVERAGED | changes)))


def test_published_count() -> None:
    assert count_on(adalora(init_r=12, target_r=8), "roberta_base") == 442_656


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(adalora(), name, "lora_", every=False)  # pruned values go back to 0


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(adalora(), name, size=0.3)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_merge_is_pefts_own(name: str) -> None:
    check_merge_is_pefts(adalora(), name)


def test_half_precision() -> None:
    check_half_precision(adalora(), adalora())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_lora_export(name: str) -> None:
    check_lora_export(adalora(), name, rank=6)


def values_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.lora_E[ADAPTER].detach().flatten().clone() for name, layer in adapted(model).items()}


def test_formula_and_initial_values() -> None:
    model, _ = prepared(adalora(), build("tiny_bert"))
    assert not any(e.any() for e in values_of(model).values())
    layers = list(adapted(model).values())
    draws = torch.cat([f.detach().flatten() for layer in layers for f in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])])
    assert draws.std().item() == pytest.approx(0.02, rel=0.1) and abs(draws.mean().item()) < 0.003
    shake(model)
    for layer in layers:
        p, e, q = layer.lora_B[ADAPTER], layer.lora_E[ADAPTER].flatten(), layer.lora_A[ADAPTER]
        x = torch.randn(3, layer.in_features)
        expected = nn.functional.linear(x, weight_of(layer.base_layer) + 12 / 6 * p @ e.diag() @ q, layer.base_layer.bias)
        assert torch.allclose(layer(x), expected, atol=1e-4)


def test_penalty_on_orthogonality() -> None:
    model, ctx = prepared(adalora(), build("tiny_bert"))
    shake(model)
    model.eval()
    batch = batches(1)[0]
    norms = []
    for layer in adapted(model).values():
        p, q = layer.lora_B[ADAPTER].detach(), layer.lora_A[ADAPTER].detach()
        norms += [(gram - torch.eye(6)).norm() for gram in (p.T @ p, q @ q.T)]
    plain = model.base_model.model(**batch).loss
    assert torch.allclose(ctx.method.loss(model, batch, ctx) - plain, 0.1 * torch.stack(norms).mean(), atol=1e-5)


class Reference:
    """Eq. 8-12 for one run of 10 updates: all triplets to update 1, then masks every second update, the last at 6 without new scores."""

    def __init__(self) -> None:
        self.smooth: dict[str, Tensor] = {}
        self.deviation: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}

    def update(self, model: nn.Module, step: int) -> None:
        if step < 6:
            self.score(model)
        if 1 < step <= 6 and step % 2 == 0:
            budget = int((24 - 8) * (1 - (step - 1) / (6 - 1)) ** 3 + 8)
            self.prune(budget)

    def score(self, model: nn.Module) -> None:
        for name, p in model.named_parameters():
            if "lora_" in name:
                now = (p * p.grad).abs().detach()
                self.smooth[name] = 0.85 * self.smooth.get(name, 0) + 0.15 * now
                self.deviation[name] = 0.8 * self.deviation.get(name, 0) + 0.2 * (now - self.smooth[name]).abs()

    def prune(self, budget: int) -> None:
        importance = {name: self.smooth[name] * self.deviation[name] for name in self.smooth}
        triplets = {}
        for name in importance:
            if "lora_E" in name:
                q, p = importance[name.replace("lora_E", "lora_A")], importance[name.replace("lora_E", "lora_B")]
                triplets[name] = importance[name].flatten() + q.mean(1) + p.mean(0)
        best = torch.cat(list(triplets.values())).sort(descending=True).values[budget - 1]
        self.last = {name: score >= best for name, score in triplets.items()}


def test_allocation_follows_the_paper_and_ends_at_the_target() -> None:
    method = adalora()
    model, ctx = prepared(method, build("tiny_bert"), steps=10)
    reference, allocate, seen = Reference(), method.on_update, []

    def watched(model: nn.Module, step: int, ctx: object) -> None:
        before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_E" in name}
        reference.update(model, step)
        allocate(model, step, ctx)
        pruned = step in (2, 4) or step >= 6
        for name, p in model.named_parameters():
            if "lora_E" in name:
                expected = before[name] * reference.last[name][:, None] if pruned else before[name]
                assert torch.equal(p, expected), (step, name)
        seen.append(sum(int(e.count_nonzero()) for e in values_of(model).values()))

    method.on_update = watched
    method.fit(model, ctx)
    assert adapter_count(model) == 4 * 6 * 65
    assert seen[1] == int(16 * 0.8**3 + 8) and seen[3] == int(16 * 0.4**3 + 8)
    assert seen[5:] == [4 * 2] * 5
    assert method.measure(model, ctx)["rank_total"] == 8 and sum(method.measure(model, ctx)["ranks"].values()) == 8
    assert [step for step in range(1, 11) if method.eligible(step, ctx)] == [6, 7, 8, 9, 10]
    factors = method.lora(model)
    assert sum(b.shape[1] for b, _ in factors.values()) == 8


@pytest.mark.parametrize(("steps", "left"), [(1, 24), (2, 8), (3, 8)])
def test_the_shortest_trainings_score_before_they_prune(steps: int, left: int) -> None:
    method = adalora(final=0.5)
    model, ctx = prepared(method, build("tiny_bert"), steps=steps)
    method.fit(model, ctx)
    assert method.measure(model, ctx)["rank_total"] == left


@pytest.mark.parametrize("cut", [3, 7])
def test_a_resume_goes_on_bit_for_bit(cut: int) -> None:
    """Cut while the averages run (3) and while only the last allocation counts (7)."""

    def steps(method: AdaLora, model: nn.Module, ctx: object, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last + 1):
            optimizer.zero_grad()
            method.loss(model, ctx.rows[step - 1], ctx).backward()
            optimizer.step()
            method.on_update(model, step, ctx)

    method = adalora()
    model, ctx = prepared(method, build("tiny_bert"), steps=10)
    optimizer = method.optimizer(model, ctx.settings)
    steps(method, model, ctx, optimizer, 1, cut)
    saved = copy.deepcopy((snapshot(model), optimizer.state_dict(), method.state_dict()))
    steps(method, model, ctx, optimizer, cut + 1, 10)
    fresh = adalora()
    again, ctx = prepared(fresh, build("tiny_bert"), seed=1, steps=10)
    ctx.rows = batches(10)
    with torch.no_grad():
        for name, p in again.named_parameters():
            p.copy_(saved[0][name])
    resumed = fresh.optimizer(again, ctx.settings)
    resumed.load_state_dict(saved[1])
    fresh.load_state_dict(saved[2])
    steps(fresh, again, ctx, resumed, cut + 1, 10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert method.state_dict().keys() == fresh.state_dict().keys() and len(fresh.state_dict()) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_r": 2}, r"method.init_r=2 is out of range; allowed: a number in \(2, inf\]"),
        ({"warmup": 0.6}, r"method.warmup=0.6 and method.final=0.4 leave no time to prune; give a sum below 1"),
        ({"beta1": 1.0}, r"method.beta1=1.0 is out of range"),
        ({"interval": 0}, r"method.interval=0 is out of range"),
    ],
)
def test_bad_configurations(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adalora(**changes)
