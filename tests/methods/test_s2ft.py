"""S2FT: counts, co-permutation with grouped queries, gradients, unpermuted merge, PaCA as reference, memory."""

from collections import Counter

import pytest
import torch
from torch import nn

from methods.adapters.own_base import wrapped
from methods.roles import head_names, role_names
from methods.sparse.paca import Paca
from methods.sparse.partial import SlicedLinear
from methods.sparse.s2ft import S2ft, heads_may_move
from methods.spec import UserError
from tests.methods.adapted import check_half_precision, check_merge, check_start_and_training, count_on, prepared, shake, weight_of
from tests.methods.fakes import batches, build, logits, snapshot
from tests.methods.sparse_memory import dense_slopes, sgd, still, trained_bytes

SEPARATE = ["tiny_bert", "tiny_deberta", "tiny_opt", "tiny_llama", "tiny_qwen2"]
FUSED = ["tiny_gpt2", "tiny_neox"]


def s2ft(**changes: object) -> S2ft:
    return S2ft(S2ft.Config(**({"v": 0.5, "o": 0.5, "up": 0.1, "down": 0.2} | changes)))


def for_model(name: str) -> S2ft:
    return s2ft(v=0.0) if name in FUSED else s2ft()


@pytest.mark.parametrize(
    ("name", "shares", "count"),
    [
        ("llama3_8b", {"v": 0.0, "o": 0.0, "up": 0.0, "down": 0.03}, 56_369_152),
        ("llama2_7b", {"v": 0.0, "o": 0.052, "up": 0.0, "down": 0.02}, 56_643_584),
    ],
)
def test_published_counts(name: str, shares: dict[str, float], count: int) -> None:
    assert count_on(s2ft(**shares), name, classify=False) == count


@pytest.mark.parametrize("name", SEPARATE + FUSED)
def test_start_and_training(name: str) -> None:
    check_start_and_training(for_model(name), name, "values")


@pytest.mark.parametrize("name", SEPARATE + FUSED)
def test_merge(name: str) -> None:
    check_merge(for_model(name), name)


def test_heads_of_mixtures_of_experts() -> None:
    heads = s2ft(up=0.0, down=0.0)
    check_start_and_training(heads, "tiny_mixtral", "values")
    assert heads.config.adjust(S2ft.traits).moe and not s2ft().config.adjust(S2ft.traits).moe


def test_half_precision() -> None:
    check_half_precision(s2ft(), s2ft())


def moving(name: str) -> tuple[nn.Module, S2ft]:
    """A prepared model of a seed under which every kind of couple has units that move."""
    for seed in range(20):
        method = for_model(name)
        model, _ = prepared(method, build(name), seed)
        moved = {couple.second for couple in method.couples if couple.trained and couple.order != sorted(couple.order)}
        if all(moved & set(role_names(model, [role])) for role in ("o", "down")):
            return model, method
    raise AssertionError("no seed moves heads and channels")


@pytest.mark.parametrize("name", SEPARATE + FUSED)
def test_permutation_keeps_the_logits_and_is_undone_to_the_last_bit(name: str) -> None:
    loaded, expected = snapshot(build(name)), logits(build(name))
    model, method = moving(name)
    with method.permuted(model):
        assert torch.allclose(logits(model), expected, atol=1e-5)
    shake(model)
    expected, before = logits(model), snapshot(model)
    with method.permuted(model):
        assert torch.allclose(logits(model), expected, atol=1e-5)
        moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
        assert all((layer.span is not None) == moves for key, layer in wrapped(model).items() for moves in [may_move(method, key)])
    roles = ["up", "down", *(["gate"] if name in ("tiny_llama", "tiny_qwen2") else []), *([] if name in FUSED else ["q", "k", "v", "o"])]
    for role in ("q", "k", "v", "o", "gate", "up", "down"):
        names = {f"{key}.weight" for key in role_names(build(name), [role])} if role in roles else set()
        assert not names or names & {key.replace(".base_layer", "") for key in moved}, role
    rows = role_names(build(name), [role for role in roles if role not in ("o", "down")])
    assert {key.replace(".base_layer", "").removesuffix(".bias") for key in moved if key.endswith("bias")} <= set(rows)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    frozen = {key.replace(".base_layer", ""): p for key, p in model.named_parameters() if key.endswith(("base_layer.weight", ".bias"))}
    heads = head_names(model)
    assert frozen and all(torch.equal(p, loaded[key]) for key, p in frozen.items() if key not in heads)


def may_move(method: S2ft, name: str) -> bool:
    return next(couple.moves for couple in method.couples if name in (couple.first, couple.second))


def test_a_forgotten_map_would_be_seen() -> None:
    """The check above has teeth: without gate, or without q, the permuted model is another one."""
    for dropped in ("gate", "q"):
        model, method = moving("tiny_llama")
        expected = logits(model)
        for couple in method.couples:
            couple.followers = [name for name in couple.followers if f"{dropped}_proj" not in name]
        with method.permuted(model):
            assert not torch.allclose(logits(model), expected, atol=1e-5)


def test_a_group_moves_with_its_query_heads() -> None:
    method = s2ft(up=0.0, down=0.0, v=0.0, o=0.25)  # one of the 4 groups
    model, _ = prepared(method, build("tiny_llama"))
    ((name, layer),) = wrapped(model).items()
    (couple,) = [c for c in method.couples if c.trained]
    (group,) = couple.of_second
    assert layer.index.tolist() == list(range(group * 16, group * 16 + 16))  # two query heads of 8
    q = name.replace("o_proj", "q_proj")
    before = weight_of(model.get_submodule(q))
    couple.of_second = {1}
    with method.permuted(model):
        after = weight_of(model.get_submodule(q))
    assert torch.equal(after, torch.cat([before[16:], before[:16]]))


def test_heads_stay_where_something_else_knows_their_order() -> None:
    names = [*SEPARATE, *FUSED, "tiny_olmoe", "tiny_gemma"]
    moved = {name: heads_may_move(build(name, classify=name != "tiny_olmoe")) for name in names}
    assert moved == {**dict.fromkeys([*SEPARATE, "tiny_gemma"], True), **dict.fromkeys([*FUSED, "tiny_olmoe"], False)}
    extra = build("tiny_bert")
    extra.bert.encoder.layer[0].attention.self.pos_key_proj = nn.Linear(4, 4)
    assert not heads_may_move(extra)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_exactly_the_chosen_units_change(name: str) -> None:
    loaded = {key: weight_of(module) for key, module in build(name).named_modules() if getattr(module, "weight", None) is not None}
    method = for_model(name)
    model, ctx = prepared(method, build(name))
    chosen = {key: (layer.index.sort().values.tolist(), layer.kind.__name__) for key, layer in wrapped(model).items()}
    assert {kind for _, kind in chosen.values()} == {"Rows", "Columns"}
    final = method.finalize(method.fit(model, ctx), ctx)
    for key, before in loaded.items():
        differs = weight_of(final.get_submodule(key)) != before
        if key in chosen:
            index, kind = chosen[key]
            assert differs.any(1 if kind == "Rows" else 0).nonzero().flatten().tolist() == index
        elif key in role_names(final, ["q", "k", "v", "o", "gate", "up", "down"] if name == "tiny_llama" else ["qkv", "o", "up", "down"]):
            assert not differs.any()


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("name", [*SEPARATE, *FUSED])
def test_gradient_is_the_slice_of_the_dense_one(name: str, permuted: bool) -> None:
    method = for_model(name)
    model, _ = prepared(method, still(build(name)))
    batch = batches(1)[0]
    slopes = dense_slopes(still(build(name)), list(wrapped(model)), batch)
    if permuted:
        with method.permuted(model):
            model(**batch).loss.backward()
    else:
        model(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        expected = slopes[key][layer.index] if layer.kind.__name__ == "Rows" else slopes[key][:, layer.index]
        assert torch.allclose(layer.values.grad, expected, atol=1e-6) and layer.values.grad.any()
    trained = {key for key, p in model.named_parameters() if p.grad is not None} - head_names(model)
    assert trained == {f"{key}.values" for key in wrapped(model)}


def test_shares_hold_over_the_whole_network() -> None:
    method = s2ft(v=0.3, o=0.7, up=0.11, down=0.23)
    prepared(method, build("tiny_llama"))
    chosen = Counter()
    for couple in method.couples:
        chosen[couple.first.rpartition(".")[2]] += len(couple.of_first)
        chosen[couple.second.rpartition(".")[2]] += len(couple.of_second)
    assert chosen == {"v_proj": int(0.3 * 4), "o_proj": int(0.7 * 4), "up_proj": int(0.11 * 128), "down_proj": int(0.23 * 128)}


def test_counts_of_layers_differ_and_layers_without_units_stay_plain() -> None:
    drawn = [wrapped(prepared(s2ft(v=0.0, up=0.0, down=0.0, o=0.25), build("tiny_llama"), seed)[0]) for seed in range(6)]
    assert all(len(layers) == 1 for layers in drawn) and len({name for layers in drawn for name in layers}) == 2
    assert {layer.index[0].item() for layers in drawn for layer in layers.values()} == {0, 16}


def as_paca(model: nn.Module, reference: nn.Module) -> nn.Module:
    """PaCA with s = 1 on the columns of an S2FT model."""
    for key, layer in wrapped(reference).items():
        model.set_submodule(key, SlicedLinear(model.get_submodule(key), layer.index, 1, adds=False))
    return model


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama", "tiny_gpt2"])
def test_columns_follow_the_path_of_paca_under_sgd(name: str) -> None:
    method = s2ft(v=0.0, up=0.0)
    ours, _ = prepared(method, still(build(name)))
    theirs, _ = prepared(Paca(Paca.Config(r=1, alpha=1.0, targets=["o"])), still(build(name)))
    for key in wrapped(theirs):
        theirs.set_submodule(key, theirs.get_submodule(key).stock())
    theirs = as_paca(theirs, ours)
    start = {key: layer.folded()[0] for key, layer in wrapped(ours).items()}
    with method.permuted(ours):
        sgd(ours, batches(4))
    sgd(theirs, batches(4))
    for key, layer in wrapped(ours).items():
        moved, apart = layer.folded()[0] - start[key], layer.folded()[0] - theirs.get_submodule(key).folded()[0]
        assert moved.any() and apart.abs().max() <= 1e-4 * moved.abs().max()


def test_less_memory_than_lora_and_full_fine_tuning() -> None:
    """The paper: up to 3 times less than full fine-tuning, and on average 10 % less than LoRA (r = 8 has more parameters here)."""
    own, lora, full = trained_bytes("s2ft"), trained_bytes("lora", r=8), trained_bytes("full_ft")
    assert all(own[part] < lora[part] for part in ("activations", "gradients", "optimizer"))
    assert own["total"] < (1 - 0.1) * lora["total"]
    assert all(own[part] < full[part] for part in ("activations", "gradients", "optimizer", "total"))


def test_columns_alone_keep_no_full_input() -> None:
    """At equal parameters rows of up cost the activations that columns of down do not."""
    columns, rows = trained_bytes("s2ft"), trained_bytes("s2ft", down=0.0, up=0.03)
    assert columns["gradients"] == rows["gradients"] and columns["activations"] < rows["activations"]


def test_bad_configurations() -> None:
    with pytest.raises(UserError, match=r"method.v, o, up and down are all 0, so nothing would train"):
        s2ft(v=0.0, o=0.0, up=0.0, down=0.0)
    with pytest.raises(UserError, match=r"method.v=0.5 needs a v map and gpt2 fuses q, k and v; give method.v=0"):
        prepared(s2ft(), build("tiny_gpt2"))
    with pytest.raises(UserError, match=r"method.o=0.2 chooses none of 4 units of llama; give 0 or at least 0.25"):
        prepared(s2ft(o=0.2), build("tiny_llama"))
