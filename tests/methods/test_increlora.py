"""IncreLoRA: the score, the rounds of growth, the reserve, what the optimizer holds, counts, and a resume of a grown model."""

import itertools
import math
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import SVDLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from harness import guard, training
from methods.adapters.increlora import IncreLinear, IncreLora
from methods.adapters.own_base import wrapped
from methods.roles import head_names
from methods.spec import UserError
from tests.contract.trial import stopping_after
from tests.harness.test_training import trainer
from tests.methods.fakes import FakeContext, batches, build, logits, trainable

ALL = ["q", "k", "v", "o", "gate", "up", "down"]
DEFAULTS = {
    "r": 1, "target": 3, "top": 2, "add": 1, "init_warmup": 1, "interval": 1, "alpha": 16.0, "beta1": 0.85, "beta2": 0.85,
    "gamma": 0.1, "advance": True, "restart": True, "dropout": 0.0, "targets": ["q", "v"],
}  # fmt: skip


def method(**changes: object) -> IncreLora:
    return IncreLora(IncreLora.Config(**(DEFAULTS | changes)))


def generator(name: str) -> torch.Generator:
    """Other draws for every name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def prepared(name: str = "tiny_bert", steps: int = 3, **changes: object) -> tuple[IncreLora, nn.Module, FakeContext]:
    own = method(**changes)
    ctx = FakeContext(own, batches(steps))
    ctx.generator = generator
    return own, own.prepare(build(name), ctx), ctx


def still(model: nn.Module) -> nn.Module:
    """Without the dropout of the backbone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def shake(model: nn.Module) -> None:
    """Move every E away from its initial value."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in wrapped(model).values():
            for e in layer.e:
                e.copy_(torch.randn(e.shape, generator=draws))


def delta(layer: IncreLinear, blocks: int, extra: list[float] = ()) -> Tensor:
    """alpha / (k + 1e-5) sum of e_i b_i a_i over single ranks of the first blocks; `extra` are the E of a reserve."""
    e = [value.item() for block in layer.e[:blocks] for value in block]
    a, b = torch.cat(list(layer.a)), torch.cat(list(layer.b), dim=1)
    pieces = [value * torch.outer(b[:, i], a[i]) for i, value in enumerate([*e, *extra])]
    return layer.alpha / (len(e) + 1e-5) * sum(pieces)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("advance", [True, False])
def test_logits_at_initialisation(name: str, advance: bool) -> None:
    expected = logits(build(name))
    _, model, _ = prepared(name, targets=ALL, add=4, target=5, advance=advance)
    assert (logits(model) - expected).abs().max() <= (1e-5 if advance else 1e-7) * expected.abs().max()
    for layer in wrapped(model).values():
        assert layer.a[0].std().item() == pytest.approx(0.02, rel=0.5)


def test_the_score_is_that_of_a_retained_gradient() -> None:
    """dW made dense, with its own gradient; two micro-batches add up to the whole batch."""
    own, model, _ = prepared(add=2, target=5)
    still(model), shake(model)
    whole = batches(1, rows=4)[0]
    for key, part in (("whole", [whole]), ("halves", [{k: v[i : i + 2] for k, v in whole.items()} for i in (0, 2)])):
        dense: dict[str, Tensor] = {}
        for name, layer in own.layers.items():
            dense[name] = delta(layer, 1, [1e-5, 1e-5]).detach().requires_grad_()
            layer.gradient = None
        for batch in part:
            model(**batch).loss.div(len(part)).backward()
        scores = {name: layer.score() for name, layer in own.layers.items()}
        with pytest.MonkeyPatch.context() as patch:
            for name, layer in own.layers.items():
                patch.setattr(layer, "delta", lambda x, w=dense[name]: linear(x, w), raising=False)
            for batch in part:
                model(**batch).loss.div(len(part)).backward()
        for name, w in dense.items():
            expected = (w * w.grad).abs().sum() / math.sqrt(w.numel())
            assert expected > 0, key
            assert scores[name].item() == pytest.approx(expected.item(), rel=1e-3), key


@pytest.mark.parametrize("growths", [0, 2])
def test_it_computes_as_pefts_adalora_of_the_same_rank(growths: int) -> None:
    """AdaLoRA has the same triplets under the same scale alpha / (k + 1e-5); output and gradients of all three."""
    rank = 2 + 3 * growths
    own = IncreLinear(nn.Linear(10, 7), 2, 3, 16.0, False, 0.0, lambda index: generator(str(index)))
    own.resize(growths)
    draws = torch.Generator().manual_seed(0)
    x, dy = torch.randn(4, 10, generator=draws), torch.randn(4, 7, generator=draws)
    peft = SVDLinear(nn.Linear(10, 7), "default", AdaLoraConfig(total_step=1), r=rank, lora_alpha=16)
    with torch.no_grad():
        for e in own.e:
            e.copy_(torch.randn(e.shape, generator=draws))
        peft.base_layer.load_state_dict(own.base_layer.state_dict())
        peft.lora_A["default"].copy_(torch.cat(list(own.a)))
        peft.lora_B["default"].copy_(torch.cat(list(own.b), dim=1))
        peft.lora_E["default"].copy_(torch.cat(list(own.e))[:, None])
    assert torch.allclose(own(x), peft(x), atol=1e-6) and not torch.allclose(own(x), own.base_layer(x), atol=1e-3)
    (own(x) * dy).sum().backward(), (peft(x) * dy).sum().backward()
    for ours, theirs in (
        (torch.cat([a.grad for a in own.a]), peft.lora_A["default"].grad),
        (torch.cat([b.grad for b in own.b], dim=1), peft.lora_B["default"].grad),
        (torch.cat([e.grad for e in own.e]), peft.lora_E["default"].grad.flatten()),
    ):
        assert ours.any() and torch.allclose(ours, theirs, atol=1e-5)


def test_importance_and_uncertainty_are_moving_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    own, model, ctx = prepared(beta1=0.8, beta2=0.5)
    layers = list(own.layers.values())
    mean = spread = [0.0] * len(layers)
    for step, scale in enumerate((1.0, 3.0, 2.0)):
        scores = [scale * (i + 1) for i in range(len(layers))]
        for layer, score in zip(layers, scores, strict=True):
            monkeypatch.setattr(layer, "score", lambda score=score: torch.tensor(score))
        own.on_gradients(model, step, ctx)
        mean = [0.8 * m + 0.2 * s for m, s in zip(mean, scores, strict=True)]
        spread = [0.5 * u + 0.5 * abs(s - m) for u, s, m in zip(spread, scores, mean, strict=True)]
    assert torch.allclose(own.importance, torch.tensor([mean, spread]))


def grow_where(own: IncreLora, model: nn.Module, ctx: FakeContext, importance: list[float]) -> list[int]:
    """Ranks after one round with a given I U."""
    own.importance = torch.tensor([importance, [1.0] * len(importance)])
    ctx.optimizer = own.optimizer(model, ctx.settings)
    own.on_update(model, 2, ctx)
    return [layer.rank for layer in own.layers.values()]


def test_the_most_important_maps_grow_and_ties_choose_no_more_than_top() -> None:
    own, model, ctx = prepared(top=2, add=2, target=5)
    assert grow_where(own, model, ctx, [1.0, 4.0, 2.0, 3.0]) == [1, 3, 1, 3]
    own, model, ctx = prepared(top=2, add=2, target=5)
    assert grow_where(own, model, ctx, [1.0, 1.0, 1.0, 0.0]) == [3, 3, 1, 1]


def test_ranks_rise_by_top_times_add_up_to_the_target_and_the_optimizer_follows() -> None:
    """4 maps from rank 1 to 5 on average: 4 more every second update from the 4th on, and 16 in all; 3 more do not fit 16."""
    for add, top, expected in ((2, 2, [4, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 20]), (3, 2, [4, 4, 4, 10, 10, 16, 16, 19, 19, 19, 19, 19])):
        own, model, ctx = prepared(steps=12, top=top, add=add, target=5, init_warmup=2, interval=2)
        totals: list[int] = []
        update = own.on_update

        def watching(net: nn.Module, step: int, given: FakeContext, own=own, totals=totals, update=update) -> None:
            update(net, step, given)
            totals.append(own.total)
            training.check_parameters(net, given.optimizer)

        own.on_update = watching
        ctx.train(model)
        assert totals == expected
        assert all(len(layer.a) == len(layer.b) == len(layer.e) + 1 for layer in own.layers.values())
        measures = own.measure(model, ctx)
        assert (measures["total_rank"], measures["target_rank"]) == (expected[-1], 20)
        assert sum(measures["ranks"].values()) == expected[-1]


def test_open_rounds_lie_between_2_and_40_percent_of_the_steps() -> None:
    own, _, _ = prepared(top=2, add=1, target=3, init_warmup=None, interval=None)
    for steps in (100, 1000, 4321):
        rounds = [step for step in range(1, steps + 1) if own.grows_after(step, steps)][:4]  # 8 ranks, 2 a round
        assert 0.02 * steps < rounds[0] and 0.3 * steps < rounds[-1] <= 0.42 * steps
        assert len({b - a for a, b in itertools.pairwise(rounds)}) == 1


def test_after_the_target_the_reserve_has_no_part_and_before_it_has() -> None:
    own, model, ctx = prepared(steps=8, top=4, add=1, target=3)
    layer = next(iter(own.layers.values()))
    shake(model)
    up, down = layer.factors()
    assert torch.allclose(up @ down, delta(layer, 1, [1e-5]), atol=1e-7) and len(down) == 2
    ctx.train(model)
    for layer in own.layers.values():
        up, down = layer.factors()
        assert len(down) == layer.rank == 3
        assert torch.allclose(up @ down, delta(layer, 3), atol=1e-6)
        assert layer.gradient is None


def test_what_grows_was_the_reserve_and_the_scale_shrinks() -> None:
    own, model, ctx = prepared(top=4)
    shake(model)
    layer = next(iter(own.layers.values()))
    before, reserve = delta(layer, 1), layer.a[1].detach().clone()
    assert grow_where(own, model, ctx, [1.0] * 4) == [2] * 4
    assert torch.equal(layer.a[1], reserve) and layer.e[1].item() == pytest.approx(1e-5)
    up, down = layer.factors()
    assert torch.allclose(up @ down, before / 2, atol=1e-4)
    assert len({tuple(block.flatten().tolist()) for block in layer.a}) == 3


def test_growth_of_all_maps_is_a_uniform_rank_growing_lora() -> None:
    """The same rounds, written with dense autograd on one (B, E, A) per map and Adam without groups."""
    own, model, ctx = prepared(steps=6, top=4, add=1, target=3, gamma=0.0, advance=False)
    ctx.settings = training.TrainSettings(1e-2, 1e-2, 0.0, 0.9, 0.999, 1e-8)
    still(model), shake(model)
    twin = still(own.__class__(own.config).prepare(build("tiny_bert"), ctx))
    twin.load_state_dict(model.state_dict())
    ctx.train(model)
    assert {layer.rank for layer in own.layers.values()} == {3}
    for layer in wrapped(twin).values():
        layer.pieces = [(layer.b[0], layer.e[0], layer.a[0])]
        layer.delta = lambda x, layer=layer: linear(x, 16.0 / (len(layer.pieces) + 1e-5) * sum(b * e @ a for b, e, a in layer.pieces))
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=1e-2)
    twin.train()
    for step, batch in enumerate(ctx.rows, 1):
        optimizer.zero_grad()
        twin(**batch).loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        if step in (2, 3):
            for name, layer in wrapped(twin).items():
                fresh = IncreLinear(nn.Linear(layer.in_features, layer.out_features), 1, 1, 16.0, False, 0.0, own.layers[name].draws)
                new = fresh.resize(step - 1) or (fresh.b[-1], fresh.e[-1], fresh.a[-1])
                layer.pieces.append(new)
                optimizer.add_param_group({"params": list(new)})
    for name, layer in wrapped(twin).items():
        expected = 16.0 / (3 + 1e-5) * sum(b * e @ a for b, e, a in layer.pieces)
        assert torch.allclose(delta(own.layers[name], 3), expected, atol=1e-4)


def test_the_orthogonality_loss() -> None:
    own, model, ctx = prepared(gamma=0.3)
    still(model)
    batch = batches(1)[0]
    expected = 0.0
    for layer in own.layers.values():
        for m in (torch.cat(list(layer.a)), torch.cat(list(layer.b), dim=1).T):
            expected += ((m @ m.T - torch.eye(len(m))) ** 2).sum().sqrt()
    plain = model(**batch).loss
    assert own.loss(model, batch, ctx).item() == pytest.approx((plain + 0.3 * expected / (2 * 4)).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_folding_and_exported_factors_of_a_grown_model(name: str) -> None:
    stock = build(name)
    start = {key: value.clone() for key, value in stock.state_dict().items()}
    own, model, ctx = prepared(name, steps=4, target=3, targets=ALL)
    shake(model)
    ctx.train(model)
    assert own.total > len(own.layers)
    expected, factors = logits(model), own.lora(model)
    final = own.finalize(model, ctx)
    assert torch.allclose(logits(final), expected, atol=1e-5)
    for key, (up, down) in factors.items():
        moved = final.get_submodule(key).weight - start[f"{key}.weight"]
        assert torch.allclose(moved.T if name == "tiny_gpt2" else moved, up @ down, atol=1e-5)


def test_counts() -> None:
    """DeBERTaV3-base: one rank in all 72 maps is 165,888 + 72 parameters; a reserve of as many more has no E."""
    for advance, count in ((False, 165_888 + 72), (True, 2 * 165_888 + 72)):
        own = method(targets=ALL, advance=advance)
        model = own.prepare(build("deberta_v3_base", device="meta"), FakeContext(own, batches(1)))
        heads = head_names(model)
        assert len(own.layers) == 72
        assert sum(size for name, size in trainable(model).items() if name not in heads) == count
        assert own.measure(model, None)["rank_parameters"] == 165_888 + 72


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resume_of_a_grown_model_is_exact(tmp_path: Path, stop: int) -> None:
    """Stopped while ranks grow and after the last growth, with its own warmups."""

    def host(folder: Path) -> training.HostTrainer:
        own = method(top=3, target=3)
        ctx = SimpleNamespace(generator=generator, total_steps=6)
        model = own.prepare(build("tiny_bert"), ctx)
        built = trainer(folder, model, own, warmup=1 / 3)
        ctx.add_parameters = lambda new, like, *, restart: built.add_parameters(new, like, restart)
        ctx.settings, built.ctx = built.ctx.settings, ctx
        return built

    straight = host(tmp_path / "straight")
    training.run_phase(straight)
    with stopping_after(stop), pytest.raises(guard.Interrupted):
        training.run_phase(host(tmp_path / "resumed"))
    resumed = host(tmp_path / "resumed")
    training.run_phase(resumed)
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    assert straight.method.total == 12 and not straight.method.growing()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(straight.method.importance, resumed.method.importance)


def test_a_smaller_state_comes_back() -> None:
    """The best state may be older than a growth."""
    own, model, ctx = prepared(top=4)
    early, weights = own.state_dict(), {name: p.detach().clone() for name, p in model.named_parameters()}
    grow_where(own, model, ctx, [1.0] * 4)
    own.load_state_dict(early)
    assert {name: p.shape for name, p in model.named_parameters()} == {name: w.shape for name, w in weights.items()}
    assert all(layer.growing for layer in own.layers.values())


def test_bad_values_are_refused() -> None:
    for changes in ({"r": 0}, {"target": 0}, {"beta1": 1.0}, {"interval": 0}, {"gamma": -1.0}, {"targets": []}):
        with pytest.raises(UserError):
            method(**changes)
