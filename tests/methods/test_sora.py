"""SoRA: PEFT's LoRA under open gates, the proximal step, sparsity, what is left at the end, and the schedule of thresholds."""

import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from methods.adapters.own_base import wrapped
from methods.adapters.sora import Sora, SoraLinear, gates, schedule
from methods.maths.prox import hard_soft_threshold, soft_threshold
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.adapted import in_peft
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

SIX = ["q", "k", "v", "o", "up", "down"]


def sora(**changes: object) -> Sora:
    values = {"r": 4, "alpha": 8.0, "dropout": 0.0, "penalty": 1e-3, "xi": 1e-2, "prox": "soft", "threshold": "constant"}
    return Sora(Sora.Config(**(values | {"schedule": "none", "xi_max": 1.0, "stages": 3, "norms": False, "targets": SIX} | changes)))


def prepared(method: Sora, model: nn.Module, steps: int = 3, lr: float = 1e-2) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(steps), lr=lr)
    return method.prepare(model, ctx), ctx


def layers(model: nn.Module) -> list[SoraLinear]:
    return list(wrapped(model).values())


def shake(model: nn.Module) -> None:
    """Move the factors and close every third gate."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for index, layer in enumerate(layers(model)):
            layer.A.add_(0.2 * torch.randn(layer.A.shape, generator=draws))
            layer.B.add_(0.2 * torch.randn(layer.B.shape, generator=draws))
            layer.g[(torch.arange(layer.r) + index) % 3 == 0] = 0.0


def test_published_count() -> None:
    """72 maps of DeBERTaV3-base at r = 8."""
    model, _ = prepared(sora(r=8), build("deberta_v3_base", device="meta"))
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == 1_327_104 + 576


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_exact_at_initialisation_whatever_the_gates(name: str) -> None:
    stock = build(name)
    start = logits(stock)
    model, _ = prepared(sora(), stock)
    assert torch.equal(logits(model), start)
    drawn = torch.cat([layer.g.detach() for layer in layers(model)])
    assert drawn.std() > 0.5 and all((layer.B == 0).all() for layer in layers(model))
    with torch.no_grad():
        for gate in gates(model).values():
            gate.uniform_(-9, 9)
    assert torch.equal(logits(model), start)


def test_gates_start_standard_normal() -> None:
    model, _ = prepared(sora(r=2000), build("tiny_bert"))
    drawn = layers(model)[0].g.detach()
    assert drawn.mean().abs() < 0.1 and drawn.std().item() == pytest.approx(1.0, abs=0.06)


def test_open_gates_are_pefts_lora() -> None:
    """g = 1, no penalty: outputs and gradients of A and B equal those of PEFT with the same factors and alpha."""
    model, _ = prepared(sora(penalty=0.0, xi=0.0), build("tiny_bert"))
    shake(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(build("tiny_bert"), LoraConfig(r=4, lora_alpha=8.0, target_modules=list(wrapped(model)))).eval()
    pairs = [(layer, peft.base_model.model.get_submodule(name)) for name, layer in wrapped(model).items()]
    with torch.no_grad():
        for layer, other in pairs:
            layer.g.fill_(1.0)
            other.lora_A["default"].weight.copy_(layer.A)
            other.lora_B["default"].weight.copy_(layer.B)
    assert torch.allclose(logits(model), logits(peft), atol=1e-6)
    (1e3 * model(**batches(1)[0]).loss).backward()
    (1e3 * peft(**batches(1)[0]).loss).backward()
    for layer, other in pairs:
        for own, reference in ((layer.A, other.lora_A["default"].weight), (layer.B, other.lora_B["default"].weight)):
            assert own.grad.abs().max() > 1e-3
            assert (own.grad - reference.grad).abs().max() < 1e-3 * own.grad.abs().max()


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_formula_and_gradients_of_gates(name: str) -> None:
    """y = W x + s B (g * (A x)); dL/dg_i = s sum (B^T dL/dy)_i (A x)_i; a closed gate has one too, its row and column have none."""
    model, _ = prepared(sora(), build(name))
    shake(model)
    layer = layers(model)[0]
    x, dy = torch.randn(5, layer.in_features), torch.randn(5, layer.out_features)
    y = layer(x)
    assert torch.allclose(y, layer.base_layer(x) + 2.0 * ((x @ layer.A.T) * layer.g) @ layer.B.T, atol=1e-5)
    (y * dy).sum().backward()
    assert torch.allclose(layer.g.grad, 2.0 * ((dy @ layer.B) * (x @ layer.A.T)).sum(0), atol=1e-3)
    closed = layer.g == 0
    assert closed.any() and (layer.g.grad[closed] != 0).all()
    assert (layer.A.grad[closed] == 0).all() and (layer.B.grad[:, closed] == 0).all()


def test_penalty_is_the_mean_over_all_gates_of_the_model() -> None:
    method = sora(penalty=3.0)
    model, ctx = prepared(method, build("tiny_bert"))
    batch = batches(1)[0]
    every = torch.cat([gate.detach() for gate in gates(model).values()])
    loss = method.loss(model, batch, ctx)
    assert (loss - model(**batch).loss).item() == pytest.approx(3 * every.abs().mean().item(), rel=1e-5)
    loss.backward()  # B = 0: nothing else reaches the gates
    assert all(torch.allclose(gate.grad, 3 * gate.sign() / len(every)) for gate in gates(model).values())


@pytest.mark.parametrize(("prox", "operator"), [("soft", soft_threshold), ("official", hard_soft_threshold)])
@pytest.mark.parametrize(("threshold", "factor"), [("constant", 1.0), ("lr", 0.5)])
def test_the_proximal_step_follows_the_update(prox: str, operator: object, threshold: str, factor: float) -> None:
    """Against the same update without it; `lr` is the rate that the update had."""
    found = []
    for xi in (0.0, 0.4):
        method = sora(xi=xi, prox=prox, threshold=threshold)
        model, ctx = prepared(method, build("tiny_bert"))
        method.xi = xi
        optimizer = method.optimizer(model, ctx.settings)
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        method.loss(model, batches(1)[0], ctx).backward()
        optimizer.step()
        method.on_update(model, 1, ctx)
        found.append(snapshot(model))
    for name, tensor in found[0].items():
        expected = operator(tensor, 0.4 * factor) if name.endswith(".g") else tensor
        assert torch.allclose(found[1][name], expected, atol=1e-7), name
    assert any((found[1][name] == 0).any() for name in found[1] if name.endswith(".g"))


def test_a_closed_gate_may_open_again() -> None:
    method = sora(xi=1e-3)
    model, ctx = prepared(method, build("tiny_bert"), lr=0.05)
    shake(model)
    before = {name: gate == 0 for name, gate in gates(model).items()}
    method.fit(model, ctx)
    assert any((closed & (gates(model)[name] != 0)).any() for name, closed in before.items())


def test_no_decay_on_gates() -> None:
    method = sora()
    model, ctx = prepared(method, build("tiny_bert"))
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in method.optimizer(model, ctx.settings).param_groups for p in group["params"]}
    assert {v for n, v in decay.items() if n.endswith(".g")} == {0.0}
    assert {v for n, v in decay.items() if n.endswith((".A", ".B"))} == {0.1}


def test_sparsity_grows_with_xi_and_a_huge_xi_leaves_the_base() -> None:
    kept = []
    for xi in (0.0, 0.02, 0.1, 0.3, 100.0):
        stock = build("tiny_bert")
        start = snapshot(stock)
        model, ctx = prepared(sora(xi=xi), stock, steps=6)
        model = ctx.method.fit(model, ctx)
        kept.append(ctx.method.measure(model, ctx)["kept_gates"])
    assert kept == sorted(kept, reverse=True) and kept[0] == 12 * 4 and kept[-1] == 0 and len(set(kept)) >= 4
    assert {tuple(f.shape) for pair in ctx.method.lora(model).values() for f in pair} <= {(32, 0), (0, 32), (64, 0), (0, 64)}
    final = ctx.method.finalize(model, ctx)
    assert changed(final, start) == head_names(final)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_deberta"])
def test_the_pruned_lora_is_the_gated_model(name: str) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(sora(xi=0.05), stock)
    model = ctx.method.fit(model, ctx)
    shake(model)
    expected, factors, measures = logits(model), ctx.method.lora(model), ctx.method.measure(model, ctx)
    assert measures["kept_parameters"] == sum(f.numel() for pair in factors.values() for f in pair)
    assert measures["rank_by_target"] == {key: down.shape[0] for key, (_, down) in factors.items()}
    assert measures["kept_gates"] == sum(measures["rank_by_target"].values()) < measures["gates"] == 4 * len(factors)
    bases = {key: layer.base_layer.weight.detach().clone() for key, layer in wrapped(model).items()}
    final = ctx.method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert (expected - start).abs().max() > 1e-3 and (logits(final) - expected).abs().max() <= 1e-5
    for key, (up, down) in factors.items():
        delta = (final.get_submodule(key).weight - bases[key]).detach()
        assert torch.allclose(delta, (up @ down).mT if name == "tiny_gpt2" else up @ down, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_the_pruned_lora_in_peft_gives_the_logits_of_the_gated_model(name: str) -> None:
    """Every map has its own rank there, the number of its open gates."""
    model, ctx = prepared(sora(), build(name))
    shake(model)
    expected, factors = logits(model), ctx.method.lora(model)
    pruned = in_peft(build(name), factors)
    assert {len(down) for _, down in factors.values()} == {2, 3}
    assert torch.allclose(logits(pruned), expected, atol=1e-6)
    kept = sum(p.numel() for key, p in pruned.named_parameters() if "lora_" in key)
    open_gates = {name: layer.g.count_nonzero().item() for name, layer in wrapped(model).items()}
    assert kept == sum(open_gates[name] * (layer.in_features + layer.out_features) for name, layer in wrapped(model).items())


def test_only_adapters_and_head_train_and_norms_on_demand() -> None:
    for wanted in (False, True):
        stock = build("tiny_bert")
        own = {key for key, _ in stock.named_parameters() if "LayerNorm" in key}
        model, ctx = prepared(sora(norms=wanted), stock)
        before = snapshot(model)
        model = ctx.method.fit(model, ctx)
        moved = changed(model, before)
        adapters = {key for key in moved if key.endswith((".A", ".B", ".g"))}
        assert moved == set(trainable(model)) == adapters | head_names(model) | (own if wanted else set())
        assert ctx.method.config.adjust(Sora.traits).exports_lora != wanted


@pytest.mark.parametrize(
    ("kind", "low", "expected"),
    [
        ("linear", 0.0, np.linspace(0, 7e-4, 7)),
        ("log_linear", 0.5, np.log(np.linspace(np.exp(0.5), np.exp(7e-1), 7))),
        ("exp_linear", 1e-5, np.geomspace(1e-5, 7e-4, 7)),
    ],
)
def test_schedules(kind: str, low: float, expected: np.ndarray) -> None:
    found = schedule(sora(schedule=kind, xi=low, xi_max=expected[-1].item(), stages=7).config)
    assert np.allclose(found, expected, rtol=1e-9, atol=0) and found[0] == low and found[-1] == expected[-1]
    assert schedule(sora(schedule="none", xi=0.3).config) == [0.3]


def test_stages_continue_raise_xi_and_give_a_model_each() -> None:
    method = sora(schedule="linear", xi=0.0, xi_max=0.2, stages=3)
    model, ctx = prepared(method, build("tiny_bert"))
    calls, ends = [], []
    train = ctx.train

    def watched(model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True) -> nn.Module:
        calls.append((phase, round(3 * share, 6), select, method.xi))
        before = snapshot(model)
        assert not ends or not changed(model, ends[-1][0])
        train(model, phase, share=share, select=select)
        assert changed(model, before)
        ends.append((snapshot(model), logits(model)))
        return model

    ctx.train = watched
    model = method.fit(model, ctx)
    assert calls == [("xi0", 1, False, 0.0), ("xi1", 1, False, 0.1), ("xi2", 1, True, 0.2)]
    counts = [stage["kept_gates"] for stage in method.measure(model, ctx)["stages"]]
    assert counts[0] == 48 and counts[0] > counts[1] > counts[2]
    final = method.finalize(model, ctx)
    main = snapshot(final)
    seen: dict[str, Tensor] = {variant: logits(candidate) for variant, candidate in method.variants(final, ctx)}
    assert list(seen) == ["main", "xi0", "xi0.1"]
    for got, want in zip((seen["xi0"], seen["xi0.1"], seen["main"]), (end[1] for end in ends), strict=True):
        assert torch.allclose(got, want, atol=1e-6)
    assert not torch.allclose(ends[0][1], ends[1][1], atol=1e-4)
    assert not changed(final, main)


def test_one_training_has_one_variant() -> None:
    model, ctx = prepared(sora(), build("tiny_bert"))
    final = ctx.method.finalize(ctx.method.fit(model, ctx), ctx)
    assert ctx.phases == ["main"] and [name for name, _ in ctx.method.variants(final, ctx)] == ["main"]


def test_mixtures_of_experts_take_attention_targets() -> None:
    attention = sora(targets=["q", "v"])
    assert attention.config.adjust(Sora.traits).moe and not sora().config.adjust(Sora.traits).moe
    model, _ = prepared(attention, build("tiny_mixtral"))
    assert len(layers(model)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xi": -1.0}, "method.xi=-1.0 is out of range"),
        ({"prox": "hard"}, "method.prox=hard is not allowed; allowed: soft, official"),
        ({"threshold": "x"}, "allowed: constant, lr"),
        ({"schedule": "cosine"}, "allowed: none, linear, log_linear, exp_linear"),
        ({"schedule": "linear", "stages": 1}, "method.stages=1 is out of range"),
        ({"schedule": "linear", "xi": 2.0}, r"method.xi_max=1.0 is out of range; allowed: a number in \(2, inf"),
        ({"schedule": "exp_linear", "xi": 0.0}, "give method.xi above 0"),
    ],
)
def test_bad_configurations(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sora(**change)
