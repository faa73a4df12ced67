"""MaskLLM: soft samples in training and hard masks else, priors, the energy term, what trains, schedules, counts, learning."""

import math

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.own_base import wrapped
from methods.maths.choices import candidates, gumbel, soft_mask
from methods.maths.masks import nm_mask
from methods.maths.rows import Rows
from methods.prune.maskllm import Anneal, ChoiceLinear, Maskllm
from methods.prune.sparsegpt import Sparsegpt
from methods.prune.wanda import Wanda
from methods.roles import head_names, prunable, prunable_parameters
from methods.sparse.scored import Level
from methods.spec import UserError
from tests.methods.adapted import count_on, weight_of
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

VALUES = {
    "pattern": "2:4", "init_std": 0.01, "prior": "magnitude", "prior_strength": 3.0, "tau_start": 4.0, "tau_end": 0.05,
    "kappa_start": 100.0, "kappa_end": 500.0, "regularisation": 1e-5,
}  # fmt: skip
MODELS = ["tiny_bert", "tiny_gpt2", "tiny_llama"]


def maskllm(**changes: object) -> Maskllm:
    return Maskllm(Maskllm.Config(**(VALUES | changes)))


def prepared(method: Maskllm, name: str = "tiny_bert", seed: int = 0) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(3), seed=seed)
    return method.prepare(build(name), ctx), ctx


def two_of_four(weight: Tensor) -> bool:
    return bool(((weight != 0).view(len(weight), -1, 4).sum(-1) == 2).all())


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_and_export_have_two_of_each_four_and_the_loaded_values(name: str) -> None:
    method, loaded = maskllm(), build(name)
    model, ctx = prepared(method, name)
    ctx.method.fit(model, ctx)
    expected, measured = logits(model), method.measure(model, ctx)
    assert torch.equal(logits(model), expected)  # no noise
    assert all(two_of_four(layer.folded()[0]) for layer in wrapped(model).values())
    final = method.finalize(model, ctx)
    assert type(final) is type(loaded) and list(final.state_dict()) == list(loaded.state_dict())
    assert torch.allclose(logits(final), expected, atol=1e-6) and measured["sparsity"] == 0.5
    for key, module in prunable(final).items():
        weight = weight_of(module)
        assert two_of_four(weight) and torch.equal(weight, weight_of(loaded.get_submodule(key)) * (weight != 0))
    assert set(measured["sparsity_by_parameter"]) == set(prunable_parameters(final))


@pytest.mark.parametrize("name", MODELS)
def test_only_logits_and_head_train(name: str) -> None:
    method = maskllm()
    model, ctx = prepared(method, name)
    heads, before = head_names(model), snapshot(model)
    gates = {n for n in trainable(model) if n not in heads}
    assert all(n.endswith(".mask_gates") for n in gates) and len(gates) == len(wrapped(model))
    seen: list[bool] = []
    ctx.probe = lambda m: seen.append(all(p.grad.any() for n, p in m.named_parameters() if n in gates))
    ctx.method.fit(model, ctx)
    assert seen == [True] * 3 and changed(model, before) == gates | heads
    assert all(layer.stock().weight.grad is None for layer in wrapped(model).values())


def test_strong_priors_are_the_masks_of_magnitude() -> None:
    model, _ = prepared(maskllm(prior_strength=1000.0), "tiny_gpt2")
    for layer in wrapped(model).values():
        assert torch.equal(layer.mask(), nm_mask(weight_of(layer.stock()).abs(), 2, 4))


@pytest.mark.parametrize(("prior", "kind"), [("wanda", Wanda), ("sparsegpt", Sparsegpt)])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_strong_priors_are_the_masks_of_the_pruners(name: str, prior: str, kind: type) -> None:
    """And the weights stay those that were loaded, also where the pruner updates them."""
    common = {"sparsity": 0.5, "pattern": "2:4", "allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.0, "retrain": False}
    own = {"scope": "row", "variant": False} if kind is Wanda else {"block": 128, "damp": 0.01}
    reference = kind(kind.Config(**common, **own))
    one_shot = reference.finalize(reference.prepare(build(name), FakeContext(reference, [])), None)
    loaded = build(name)
    model, _ = prepared(maskllm(prior=prior, prior_strength=1000.0), name)
    for key, layer in wrapped(model).items():
        assert torch.equal(layer.mask(), weight_of(one_shot.get_submodule(key)) != 0)
        assert torch.equal(layer.stock().weight, loaded.get_submodule(key).weight)


def test_without_a_prior_the_choice_is_that_of_the_draws() -> None:
    """Every pattern has about a sixth of the groups; another seed chooses otherwise, the same seed alike."""
    masks = []
    for seed in (0, 0, 1):
        model, _ = prepared(maskllm(prior="none"), seed=seed)
        masks.append(torch.cat([layer.mask().view(-1, 4) for layer in wrapped(model).values()]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    _, counts = masks[0].unique(dim=0, return_counts=True)
    assert len(counts) == 6 and (counts / len(masks[0]) - 1 / 6).abs().max() < 0.05
    gates = torch.cat([layer.mask_gates.detach().flatten() for layer in wrapped(model).values()])
    assert gates.std() == pytest.approx(0.01, rel=0.05) and abs(gates.mean()) < 1e-3


def layer_of(tau: float = 1.0, kappa: float = 100.0, width: int = 16) -> ChoiceLinear:
    torch.manual_seed(0)
    base = nn.Linear(width, 8)
    gates = 0.01 * torch.randn(8, width // 4, 6)
    return ChoiceLinear(base, Level(0.0), Rows(), gates, candidates(2, 4), Anneal((tau, tau), (kappa, kappa)))


def test_a_training_pass_is_the_linear_map_under_its_sample() -> None:
    layer, x = layer_of().train(), torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    y = layer(x)
    torch.manual_seed(5)
    mask = soft_mask(layer.mask_gates, candidates(2, 4), gumbel(layer.mask_gates), 1.0, 100.0)
    assert torch.allclose(y, x @ (layer.stock().weight * mask).T + layer.stock().bias, atol=1e-6)
    assert not torch.allclose(y, layer(x))


def test_schedules_are_linear_over_all_updates() -> None:
    method = maskllm()
    model, ctx = prepared(method)
    ctx.total_steps = 10
    layer = next(iter(wrapped(model).values())).train()
    for step, tau, kappa in ((0, 4.0, 100.0), (5, 2.025, 300.0), (10, 0.05, 500.0)):
        method.on_step(model, step, ctx)
        torch.manual_seed(3)
        own = layer.sample()
        torch.manual_seed(3)
        expected = nn.functional.gumbel_softmax(kappa * layer.mask_gates, tau=tau) @ candidates(2, 4)
        assert torch.allclose(own, expected.flatten(1), atol=1e-4)
    assert all(method.eligible(step, ctx) for step in range(11))


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (5, 0.5), (10, 0.0)])
def test_the_loss_is_lowered_by_the_energy_that_is_left(step: int, share: float) -> None:
    """lambda falls to 0; the same noise gives the same masks with and without the term."""
    losses, energy = [], 0.0
    for rate in (0.0, 1e-2):
        method = maskllm(regularisation=rate)
        model, ctx = prepared(method)
        ctx.total_steps = 10
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train()
        method.on_step(model, step, ctx)
        torch.manual_seed(4)
        losses.append(method.loss(model, ctx.rows[0], ctx).item())
        torch.manual_seed(4)
        energy = sum(float((layer.stock().weight * layer.sample()).square().sum().detach()) for layer in wrapped(model).values())
        assert all(layer.energies is None for layer in wrapped(model).values())
    assert losses[0] - losses[1] == pytest.approx(1e-2 * share * energy, abs=2e-5) and energy > 1


def test_the_energy_alone_leads_to_the_largest_weights() -> None:
    """Without a loss, ascent on |W * M~|^2 finds the magnitude mask, whatever the logits start with."""
    layer = layer_of(tau=1.0, kappa=1.0, width=32).train()
    optimizer = torch.optim.Adam([layer.mask_gates], lr=0.1)
    for _ in range(150):
        layer.energies = []
        layer(torch.zeros(1, 32))
        optimizer.zero_grad()
        (-100 * layer.energies[0]).backward()
        optimizer.step()
    assert (layer.mask() == nm_mask(layer.stock().weight.abs(), 2, 4)).float().mean() > 0.95


def test_it_learns_to_keep_what_the_loss_needs() -> None:
    """In each group the two small weights are the useful ones: magnitude prunes them, the logits must turn the masks round."""
    layer = layer_of(tau=1.0, kappa=10.0)
    useful = torch.tensor([1.0, 0, 1, 0]).repeat(4)
    with torch.no_grad():
        layer.stock().weight.copy_(torch.randn(8, 16) * 0.5 + torch.where(useful.bool(), 0.0, 2.0))
    target = layer.stock().weight.detach() * useful
    optimizer = torch.optim.AdamW([layer.mask_gates], lr=0.02, weight_decay=0.0)
    for _ in range(200):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (layer.train()(x) - layer.stock().bias.detach() - x @ target.T).square().mean().backward()
        optimizer.step()
    assert (layer.mask() == useful.bool()).float().mean() > 0.9


def test_training_repeats_with_the_seed() -> None:
    gates = []
    for _ in range(2):
        model, ctx = prepared(maskllm())
        torch.manual_seed(9)
        ctx.method.fit(model, ctx)
        gates.append(next(iter(wrapped(model).values())).mask_gates.detach())
    assert torch.equal(*gates)


def test_half_precision_keeps_the_logits_in_float32_and_autocast_touches_the_product_alone() -> None:
    method = maskllm()
    ctx = FakeContext(method, batches(1))
    model = method.prepare(build("tiny_llama").bfloat16(), ctx).train()
    method.loss(model, ctx.rows[0], ctx).backward()
    layers = list(wrapped(model).values())
    assert all(layer.mask_gates.grad.dtype == torch.float32 and layer.mask_gates.grad.any() for layer in layers)
    expected = logits(model)
    assert torch.equal(logits(method.finalize(model, ctx)), expected)
    layer, x = layer_of(), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        y = layer.train()(x)
        torch.manual_seed(1)
        with torch.autocast("cpu", enabled=False):
            weight = layer.stock().weight * layer.sample()
    assert torch.equal(y, nn.functional.linear(x.bfloat16(), weight.bfloat16(), layer.stock().bias.bfloat16()))


@pytest.mark.parametrize(
    ("name", "pattern", "count"),
    [
        ("llama2_7b", "2:4", 9_714_008_064),
        ("bert_base", "2:4", 127_401_984),
        ("minilm", "2:4", 15_925_248),
        ("bert_base", "1:4", 84_934_656),
    ],
)  # fmt: skip
def test_counts(name: str, pattern: str, count: int) -> None:
    """C(M, N) / M logits a weight."""
    assert count_on(maskllm(pattern=pattern), name, classify="llama" not in name) == count
    n, m = map(int, pattern.split(":"))
    weights = sum(p.numel() for p in prunable_parameters(build(name, classify="llama" not in name, device="meta")).values())
    assert count == weights * math.comb(m, n) // m


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "unstructured"}, "method.pattern=unstructured is not allowed"),
        ({"pattern": "8:16"}, "method.pattern=8:16 has too many choices a group"),
        ({"prior": "movement"}, "method.prior=movement is not allowed; allowed: none, magnitude, wanda, sparsegpt"),
        ({"prior_strength": -1.0}, "method.prior_strength=-1.0 is out of range"),
        ({"tau_end": 0.0}, "method.tau_end=0.0 is out of range"),
        ({"init_std": 0.0}, "method.init_std=0.0 is out of range"),
        ({"regularisation": -1e-5}, "method.regularisation=-1e-05 is out of range"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        maskllm(**changes)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="needs input widths divisible by 7"):
        prepared(maskllm(pattern="2:7"))


def test_traits_follow_the_prior() -> None:
    assert not maskllm().config.adjust(Maskllm.traits).calibration
    assert maskllm(prior="wanda").config.adjust(Maskllm.traits).calibration


def test_a_different_batch_of_noise_every_pass() -> None:
    model, _ = prepared(maskllm(), "tiny_llama")  # without dropout
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(**inputs()).logits, model(**inputs()).logits)
