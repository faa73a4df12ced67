"""LoRAPrune: its gradient identity, importances against a plain reference, counts along the schedule, masked equals removed."""

from typing import Any

import pytest
import torch
from torch import nn

from methods.adapters.wrapped import weight_and_bias
from methods.prune.loraprune import Loraprune, step_of_product
from methods.prune.structured import groups
from methods.roles import layers
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, logits, trainable

BASE = {
    "ratio": 0.5, "r": 4, "alpha": 8.0, "dropout": 0.0, "warmup": 0.1, "cooldown": 0.2, "every": 2, "first": 0.1, "last": 1,
    "importance": "lora",
}  # fmt: skip


def prepared(name: str = "tiny_llama", steps: int = 20, **changes: Any) -> tuple[Loraprune, nn.Module, FakeContext]:
    m = Loraprune(Loraprune.Config(**BASE | changes))
    ctx = FakeContext(m, batches(steps))
    return m, m.prepare(build(name), ctx), ctx


def test_the_guided_gradient_is_one_step_of_the_product() -> None:
    draws = torch.Generator().manual_seed(0)
    b, db = torch.randn(2, 5, 3, generator=draws, dtype=torch.float64)
    a, da = torch.randn(2, 3, 7, generator=draws, dtype=torch.float64)
    torch.testing.assert_close(step_of_product(b, a, db, da), b @ a - (b - db) @ (a - da), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_bert", "tiny_gpt2"])
def test_masked_equals_removed_and_the_ends_stay(name: str) -> None:
    m, model, ctx = prepared(name)
    m.fit(model, ctx)
    masked = logits(model)
    kept = m.measure(model, ctx)["kept_units"]
    model = m.finalize(model, ctx)
    torch.testing.assert_close(logits(model), masked, rtol=1e-4, atol=1e-5)
    whole = {group.key: group.units for group in groups(build(name))}
    for group in groups(model):
        expected = whole[group.key] - int(0.5 * whole[group.key]) if group.layer == 0 else whole[group.key]
        assert group.units == expected
    assert set(kept) == {"0.heads", "0.channels"}


def test_counts_follow_the_schedule_and_what_is_masked_stays_so() -> None:
    m, model, ctx = prepared(steps=30, every=3)
    seen: list[dict[str, torch.Tensor]] = []
    update = m.on_update

    def watch(model: nn.Module, step: int, ctx: FakeContext) -> None:
        update(model, step, ctx)
        seen.append({key: alive.clone() for key, alive in m.alive.items()})

    m.on_update = watch
    m.fit(model, ctx)
    for step, alive in enumerate(seen, 1):
        latest = max([s for s in range(3, step + 1, 3) if s <= 24] + [25] * (step >= 25) + [0])  # 24 = T - t_f; at 25 it is reached
        ratio = m.ratio(latest, 30) if latest else 0.0
        assert {key: int((~a).sum()) for key, a in alive.items()} == {key: int(ratio * len(a)) for key, a in alive.items()}
        assert step == 1 or all((a <= seen[step - 2][key]).all() for key, a in alive.items())
    assert (m.ratio(0, 30), m.ratio(3, 30), m.ratio(30, 30)) == (0.0, 0.0, 0.5)
    assert int((~seen[-1]["0.channels"]).sum()) == 32
    assert [m.eligible(step, ctx) for step in (24, 25, 30)] == [False, True, True]


def test_importance_is_smoothed_normalised_per_map_and_added() -> None:
    """Against sums written out entry by entry on the first step, where B = 0 and so only dB counts."""
    m, model, ctx = prepared(steps=1)
    name = "model.layers.0.mlp."
    before = {part: weight_and_bias(model.get_submodule(name + part).base_layer)[0] for part in ("gate_proj", "up_proj", "down_proj")}
    caught: dict[str, torch.Tensor] = {}

    def probe(model: nn.Module) -> None:
        for part, weight in before.items():
            layer = model.get_submodule(name + part)
            entries = (layer.B.grad @ layer.A.detach() * weight).abs()
            sums = entries.sum(0) if part == "down_proj" else entries.sum(1)
            caught[part] = sums / sums.norm()

    ctx.probe = probe
    m.fit(model, ctx)
    torch.testing.assert_close(m.importance["0.channels"], 0.1 * sum(caught.values()), rtol=1e-4, atol=1e-7)


def test_parameters_are_lora_on_every_map() -> None:
    _, model, _ = prepared("tiny_bert", r=4)
    maps = sum(sum(layer.weight.shape) for block in layers(build("tiny_bert")) for layer in block.modules() if isinstance(layer, nn.Linear))
    own = sum(size for name, size in trainable(model).items() if name.endswith((".A", ".B")))
    assert own == 4 * maps
    big = build("llama_7b", classify=False, device="meta")
    m = Loraprune(Loraprune.Config(**BASE | {"r": 8}))
    assert sum(trainable(m.prepare(big, FakeContext(m, []))).values()) == 19_988_480


def test_state_survives_a_resume() -> None:
    m, model, ctx = prepared()
    m.fit(model, ctx)
    other, fresh, _ = prepared()
    other.load_state_dict(m.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), logits(model))
    assert all(torch.equal(other.alive[key], m.alive[key]) and torch.equal(other.importance[key], m.importance[key]) for key in m.alive)


def test_what_leaves_nothing_to_prune_is_refused() -> None:
    with pytest.raises(UserError, match="leave none of 2 blocks"):
        prepared(first=0.5, last=1)
    with pytest.raises(UserError, match="leave no updates to prune in"):
        prepared(warmup=0.5, cooldown=0.5)
