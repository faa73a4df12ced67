"""LLM-Pruner: published sizes, importance against finite differences and a plain reference, what stays whole, what comes back."""

from typing import Any

import pytest
import torch
from torch import nn

from methods.prune.llm_pruner import LlmPruner, salience, slopes
from methods.prune.structured import groups
from methods.roles import layers, prunable
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot

BASE = {"ratio": 0.5, "first": 0, "last": 0, "importance": "param_mix", "reduce": "sum", "local": True}


def pruned(model: nn.Module, **changes: Any) -> tuple[LlmPruner, nn.Module]:
    m = LlmPruner(LlmPruner.Config(**BASE | changes))
    return m, m.prepare(model, FakeContext(m, batches(1)))


def loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """In float64, which transformers' loss leaves for float32, as RMSNorm does: steps must not be too small."""
    scores = model(input_ids=ids).logits[:, :-1]
    return nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.parametrize(("name", "size"), [("llama3_8b", 6_612_586_496), ("llama_7b", 5_422_977_024)])
def test_sizes_on_the_papers_models(name: str, size: int) -> None:
    """Llama-3-8B as the repository reports it; LLaMA-7B ("5.4B"): 26 blocks lose 8 of 32 heads and 2,752 of 11,008 channels."""
    model = build(name, classify=False, device="meta")
    _, model = pruned(model, ratio=0.25, first=0.125, last=0.0625, importance="l2")
    assert sum(p.numel() for p in model.parameters()) == size
    assert name == "llama3_8b" or size == 6_738_415_616 - 26 * (4 * 1024 * 4096 + 3 * 2752 * 4096)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2", "tiny_opt"])
def test_ends_stay_whole_and_the_rest_loses_its_share(name: str) -> None:
    whole = build(name, classify=False)
    m, model = pruned(build(name, classify=False), first=0.5, last=0)
    units = {group.key: group.units for group in groups(whole)}
    for group in groups(model):
        assert group.units == (units[group.key] if group.layer == 0 else units[group.key] - int(0.5 * units[group.key]))
    first = {id(p) for p in layers(whole)[0].parameters()}
    names = {n for n, p in whole.named_parameters() if id(p) in first}
    assert all(torch.equal(p, snapshot(whole)[n]) for n, p in model.named_parameters() if n in names)
    measured = m.measure(model, None)
    assert measured["parameters_removed"] == pytest.approx(1 - sum(p.numel() for p in model.parameters()) / m.before)
    with pytest.raises(UserError, match=r"leave no blocks to prune"):
        pruned(build(name, classify=False), first=0.5, last=0.5)


def test_first_order_importance_is_the_slope_of_the_loss_when_a_channel_shrinks() -> None:
    """d loss / d eps with the down column of channel c scaled by (1 - eps) is -sum g W, by central differences."""
    model = build("tiny_llama", classify=False).double()
    ids = FakeContext(None, []).calibration()[:4]
    name = "model.layers.1.mlp.down_proj"
    weight = prunable(model)[name].weight
    g, _ = slopes(model.requires_grad_(False), {name: weight}, ids, squares=False)
    vector = salience(weight.detach(), g[name], None, "vectorize").sum(0)
    for channel in (0, 7, 31):
        values = []
        for eps in (0.05, -0.05):
            with torch.no_grad():
                kept = weight[:, channel].clone()
                weight[:, channel] *= 1 - eps
                values.append(torch.stack([loss(model, row[None]) for row in ids]).mean())
                weight[:, channel] = kept
        slope = (values[0] - values[1]) / 0.1
        assert -vector[channel].item() == pytest.approx(slope.item(), rel=1e-2)


def test_entries_and_sums_equal_a_plain_reference() -> None:
    model = build("tiny_gpt2", classify=False)
    ids = FakeContext(None, []).calibration()
    name = "transformer.h.0.mlp.c_fc"
    gradients = []
    for row in ids:
        model.zero_grad()
        loss(model, row[None]).backward()
        gradients.append(model.get_submodule(name).weight.grad.clone())
    stacked, w = torch.stack(gradients), model.get_submodule(name).weight.detach()
    expected = (stacked.mean(0) * w - 0.5 * stacked.square().mean(0) * w.square()).abs()
    g, h = slopes(model.requires_grad_(False), {name: prunable(model)[name].weight}, ids, squares=True)
    torch.testing.assert_close(salience(w, g[name], h[name], "param_mix"), expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(salience(w, g[name], h[name], "param_second"), stacked.square().mean(0) * w.square(), rtol=1e-4, atol=1e-12)
    whole = torch.autograd.grad(loss(model.requires_grad_(True), ids), model.get_submodule(name).weight)[0]
    torch.testing.assert_close(g[name], whole, rtol=1e-3, atol=1e-6)  # the batch's gradient is the mean of the sequences'


@pytest.mark.parametrize("importance", ["param_mix", "param_first", "param_second", "vectorize", "l1", "l2"])
def test_the_units_that_go_are_the_least_important(importance: str) -> None:
    """A channel whose entries are 1,000 times smaller than the others' matters least by every measure."""
    model = build("tiny_llama", classify=False)
    weak = [3, 10, 40]
    with torch.no_grad():
        for block in layers(model):
            block.mlp.down_proj.weight[:, weak] *= 1e-3
            block.mlp.up_proj.weight[weak] *= 1e-3
            block.mlp.gate_proj.weight[weak] *= 1e-3
    m, _ = pruned(model, importance=importance, ratio=3 / 64)
    for layer in (0, 1):
        assert sorted(set(range(64)) - set(m.kept[f"{layer}.channels"].tolist())) == weak


def test_a_global_choice_takes_more_where_less_is_lost_and_never_all() -> None:
    model = build("tiny_llama", classify=False)
    with torch.no_grad():
        for name, module in prunable(model).items():
            module.weight *= 0.01 if ".0." in name else 1.0
    m, small = pruned(model, importance="l1", local=False, ratio=0.5)
    sizes = {key: len(index) for key, index in m.kept.items()}
    assert sizes["0.channels"] == 1 and sizes["1.channels"] == 63
    assert sizes["0.heads"] + sizes["1.heads"] == 2 and min(sizes.values()) == 1
    assert logits(small).isfinite().all()


def test_random_units_come_from_the_seed() -> None:
    chosen = []
    for seed in (0, 0, 1):
        m = LlmPruner(LlmPruner.Config(**BASE | {"importance": "random"}))
        m.prepare(build("tiny_llama", classify=False), FakeContext(m, [], seed=seed))
        chosen.append(torch.cat(list(m.kept.values())))
    assert torch.equal(chosen[0], chosen[1]) and not torch.equal(chosen[0], chosen[2])


def test_gradients_need_a_language_model_head() -> None:
    with pytest.raises(UserError, match=r"importance=param_first takes gradients .* this llama has no .* give method\.importance=l1"):
        pruned(build("tiny_llama"), importance="param_first")
    _, model = pruned(build("tiny_llama"), importance="l1")
    assert groups(model)[0].units == groups(build("tiny_llama"))[0].units // 2
