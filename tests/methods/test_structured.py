"""Structured removal: what is cut away is exactly what masking would silence, in every family, and it can be put back as zeros."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from methods.prune.structured import CHANNELS, HEADS, groups, hide, lowest_removed, remove, restore, uniform_config, unit_sums
from methods.roles import layers, prunable, unwrap
from methods.spec import UserError
from tests.methods.fakes import build, logits, snapshot

FAMILIES = ["tiny_bert", "tiny_roberta", "tiny_deberta", "tiny_gpt2", "tiny_neox", "tiny_opt", "tiny_llama", "tiny_gemma", "tiny_qwen2"]


def choice(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Different units in every block: one head group goes, a third of the channels."""
    draws = torch.Generator().manual_seed(seed)
    kept = {}
    for group in groups(model):
        count = min(group.units - 1, max(1, group.units // 3))
        kept[group.key] = torch.randperm(group.units, generator=draws)[count:].sort().values
    return kept


def bumped(name: str) -> nn.Module:
    """Random biases too, so that a wrong row shows."""
    model = build(name)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draws))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sliced_model_computes_what_the_masked_one_does(name: str) -> None:
    masked, sliced = bumped(name), bumped(name)
    kept = choice(sliced)
    for group in groups(masked):
        dead = torch.ones(group.units, dtype=torch.bool)
        dead[kept[group.key]] = False
        hide(masked, group, dead)
    whole = logits(bumped(name))
    remove(sliced, kept)
    torch.testing.assert_close(logits(sliced), logits(masked), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(sliced), whole, atol=1e-3)
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in masked.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_restoring_gives_the_masked_model_to_the_bit(name: str) -> None:
    masked, model = bumped(name), bumped(name)
    kept = choice(model)
    units = {group.key: group.units for group in groups(model)}
    for group in groups(masked):
        dead = torch.ones(group.units, dtype=torch.bool)
        dead[kept[group.key]] = False
        hide(masked, group, dead)
    remove(model, kept)
    assert {group.key: group.units for group in groups(model)} == {key: len(index) for key, index in kept.items()}
    restore(model, kept, units)
    assert all(torch.equal(p, snapshot(masked)[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model), logits(masked))


def test_grouped_queries_go_with_their_key_value_head() -> None:
    """tiny_llama: 4 query heads of 8 on 2 key-value heads; keeping the second leaves query heads 2 and 3."""
    model, before = build("tiny_llama"), snapshot(build("tiny_llama"))
    heads = next(group for group in groups(model) if group.kind == HEADS)
    assert heads.units == 2 and heads.rows["model.layers.0.self_attn.q_proj"].shape == (2, 16)
    remove(model, {heads.key: torch.tensor([1])})
    attention = model.model.layers[0].self_attn
    assert torch.equal(attention.q_proj.weight, before["model.layers.0.self_attn.q_proj.weight"][16:])
    assert torch.equal(attention.k_proj.weight, before["model.layers.0.self_attn.k_proj.weight"][8:])
    assert torch.equal(attention.o_proj.weight, before["model.layers.0.self_attn.o_proj.weight"][:, 16:])


def test_fused_rows_of_a_head_are_its_q_k_and_v() -> None:
    """gpt2 keeps all q, all k, all v one after the other, gpt-neox q, k and v of one head after the other; 4 heads of 8."""
    gpt2 = next(group for group in groups(build("tiny_gpt2")) if group.kind == HEADS)
    neox = next(group for group in groups(build("tiny_neox")) if group.kind == HEADS)
    (rows,), (mixed,) = gpt2.rows.values(), neox.rows.values()
    assert rows[1].tolist() == [*range(8, 16), *range(40, 48), *range(72, 80)]
    assert mixed[1].tolist() == list(range(24, 48))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen2", "tiny_bert"])
def test_equal_blocks_have_a_stock_configuration_where_the_family_can_say_it(name: str) -> None:
    model = build(name)
    kept = {group.key: torch.arange(group.units - (1 if group.kind == HEADS else 8)) for group in groups(model)}
    remove(model, kept)
    config = uniform_config(model)
    if name == "tiny_bert":  # a head's width is hidden size over heads there
        assert config is None
        channels = build(name)
        remove(channels, {key: index for key, index in kept.items() if key.endswith(CHANNELS)})
        assert uniform_config(channels).intermediate_size == unwrap(model).config.intermediate_size - 8
        return
    stock = type(unwrap(model))(AutoConfig.for_model(**config.to_dict()))
    stock.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits(stock), logits(model), rtol=0, atol=0)
    remove(model, {"0.channels": torch.arange(4)})
    assert uniform_config(model) is None


def test_unit_sums_add_what_belongs_to_a_unit() -> None:
    model = build("tiny_llama")
    scores = {name: module.weight.detach().abs() for name, module in prunable(model).items()}
    heads, channels = groups(model)[:2]
    sums = unit_sums(heads, scores)
    q, o = scores["model.layers.0.self_attn.q_proj"], scores["model.layers.0.self_attn.o_proj"]
    torch.testing.assert_close(sums["model.layers.0.self_attn.q_proj"], torch.stack([q[:16].sum(), q[16:].sum()]))
    torch.testing.assert_close(sums["model.layers.0.self_attn.o_proj"], torch.stack([o[:, :16].sum(), o[:, 16:].sum()]))
    down = unit_sums(channels, scores)["model.layers.0.mlp.down_proj"]
    torch.testing.assert_close(down, scores["model.layers.0.mlp.down_proj"].sum(0))


def test_the_least_important_go_and_ties_lose_from_the_end() -> None:
    assert lowest_removed(torch.tensor([3.0, 1.0, 2.0, 1.0]), 1).tolist() == [0, 1, 2]
    assert lowest_removed(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2).tolist() == [0, 2]


def test_training_and_generation_work_after_removal() -> None:
    model = build("tiny_llama", classify=False)
    remove(model, choice(model))
    ids = torch.randint(6, 260, (2, 9), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in layers(model)[0].parameters())
    cached, anew = (
        model.eval().generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(cached, anew) and cached.shape[1] > 9


def test_experts_are_refused() -> None:
    with pytest.raises(UserError, match="is a mixture of experts"):
        groups(build("tiny_mixtral", classify=False))
