"""PERP: every form of LoRA starts at the pruned model and folds as its formula says; the subset, reconstruction, traits, counts, memory."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from harness.ledger import memory_ledger
from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import map_shape, weight_and_bias
from methods.base import Method
from methods.prune.criteria import pruner
from methods.prune.perp import DenseLora, HadamardLora, Perp
from methods.roles import layers, prunable
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable
from tests.methods.test_blockwise import plainly

DEFAULTS: dict[str, Any] = {
    "criterion": "magnitude", "sparsity": 0.5, "pattern": "unstructured", "subset": ["biases", "norms"], "lora": "mask_lora", "r": 4,
    "alpha": 8.0, "mode": "retrain", "steps": 30, "rate": 1e-2,
}  # fmt: skip
FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_opt"]
FORMS = ["lora", "lora_prune", "scale_lora", "mask_lora"]


def perp(**changes: Any) -> Perp:
    return Perp(Perp.Config(**DEFAULTS | changes))


def prepared(name: str, *, classify: bool = True, **changes: Any) -> tuple[Perp, nn.Module, FakeContext]:
    method = perp(**changes)
    ctx = FakeContext(method, batches(3), weight_decay=0.0)
    return method, method.prepare(build(name, classify=classify), ctx), ctx


def fitted(name: str, **changes: Any) -> tuple[Perp, nn.Module, FakeContext]:
    method, model, ctx = prepared(name, **changes)
    return method, method.fit(model, ctx), ctx


def magnitude_pruned(name: str) -> nn.Module:
    method = pruner("magnitude", 0.5, "unstructured")
    ctx = FakeContext(method, [])
    return method.finalize(method.prepare(build(name), ctx), ctx)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight_and_bias(module)[0] for name, module in prunable(model).items()}


# The card's checks


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora", ["none", *FORMS])
def test_every_form_starts_at_the_pruned_model(name: str, lora: str) -> None:
    method, model, ctx = prepared(name, lora=lora)
    expected = logits(magnitude_pruned(name))
    assert torch.allclose(logits(model), expected, atol=1e-5 * expected.abs().max())
    assert not torch.allclose(logits(build(name)), expected, atol=1e-3 * expected.abs().max())
    folded = method.finalize(model, ctx)
    assert all(torch.allclose(w, weights(folded)[key], atol=1e-6) for key, w in weights(magnitude_pruned(name)).items())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora", ["none", "lora_prune", "scale_lora", "mask_lora"])
def test_zeros_after_training_and_folding_are_the_masks_zeros(name: str, lora: str) -> None:
    method, model, ctx = fitted(name, lora=lora)
    before = weights(magnitude_pruned(name))
    assert method.measure(model, ctx)["sparsity"] == pytest.approx(0.5, abs=1e-3)
    after = weights(method.finalize(model, ctx))
    for key, weight in after.items():
        assert torch.equal(weight != 0, before[key] != 0) and torch.equal(weight != 0, method.kept[key])
    moved = [key for key, weight in after.items() if not torch.equal(weight, before[key])]
    assert len(moved) == (0 if lora == "none" else len(after))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora", FORMS)
def test_folded_logits_are_those_before_folding(name: str, lora: str) -> None:
    method, model, ctx = fitted(name, lora=lora)
    seen = logits(model)
    final = method.finalize(model, ctx)
    assert not wrapped(final) and torch.allclose(logits(final), seen, atol=1e-5 * seen.abs().max())


def test_lora_prune_trains_as_lora_and_differs_after_folding() -> None:
    (one, plain, ctx), (two, pruned, other) = fitted("tiny_bert", lora="lora"), fitted("tiny_bert", lora="lora_prune")
    assert all(torch.equal(p, pruned.get_parameter(name)) for name, p in plain.named_parameters())
    assert not torch.allclose(logits(plain), logits(pruned), atol=1e-4)
    assert one.measure(plain, ctx)["sparsity"] < 0.01
    dense, sparse, before = weights(one.finalize(plain, ctx)), weights(two.finalize(pruned, other)), weights(magnitude_pruned("tiny_bert"))
    for key, weight in sparse.items():
        kept = two.kept[key]
        assert torch.allclose(weight[kept], dense[key][kept], atol=1e-6) and (dense[key][~kept] != 0).float().mean() > 0.99
        assert torch.equal(before[key] != 0, weight != 0)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("lora", ["mask_lora", "scale_lora"])
def test_reconstruction_lowers_the_error_of_every_map(name: str, lora: str) -> None:
    method, model, ctx = prepared(name, classify=False, mode="reconstruct", lora=lora)
    assert method.errors.keys() == prunable(model).keys()
    limit = 0.99 if lora == "mask_lora" else 1.0  # scale_lora is of rank 1
    assert all(after < limit * before for before, after in method.errors.values())
    measured = method.measure(model, ctx)["reconstruction_error"]
    before, after = (torch.tensor(list(method.errors.values())).mean(0)).tolist()
    assert measured == pytest.approx({"before": before, "after": after})
    assert all(torch.equal(weight != 0, method.kept[key]) for key, weight in weights(model).items())
    assert not trainable(model) and method.fit(model, ctx) is model and ctx.phases == ["reconstruct"]


def test_reconstruction_of_full_rank_nears_least_squares_on_the_kept_entries() -> None:
    """On the first block's queries, whose inputs are the embeddings': kept entries of each row by `lstsq`."""
    method, _, _ = prepared("tiny_llama", classify=False, mode="reconstruct", r=64, alpha=64.0, steps=150, rate=0.03)
    dense, key = build("tiny_llama", classify=False), next(iter(method.errors))
    x = plainly(dense, FakeContext(method, []).calibration())[key].flatten(0, -2).double()
    target, kept = weights(dense)[key].detach().double(), method.kept[key]
    best = torch.zeros_like(target)
    for row in range(len(target)):
        best[row, kept[row]] = torch.linalg.lstsq(x[:, kept[row]], (x @ target[row])[:, None]).solution[:, 0]
    least = float((x @ (best - target).T).square().sum() / (x @ target.T).square().sum())
    before, after = method.errors[key]
    assert least - 1e-4 < after < least + 0.05 * (before - least)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_is_that_of_torchs_l1_unstructured_in_each_map(name: str) -> None:
    method, _, _ = prepared(name)
    for key, weight in weights(build(name)).items():
        module = nn.Linear(weight.shape[1], weight.shape[0])
        module.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        torch_prune.l1_unstructured(module, "weight", amount=0.5)
        assert torch.equal(method.kept[key], module.weight_mask.bool())


# Traps


def test_a_kept_weight_that_is_exactly_zero_is_not_pruned() -> None:
    """The mask is stored, not read off W: of rows at zero beyond the share that is pruned, entries are kept, and they train."""
    model = build("tiny_bert")
    ups = [name for name in prunable(model) if name.endswith("intermediate.dense")]
    with torch.no_grad():
        for name in ups:
            model.get_submodule(name).weight[::2] = 0
            model.get_submodule(name).weight[1::4] = 0
    method = perp()
    ctx = FakeContext(method, batches(3))
    model = method.finalize(method.fit(method.prepare(model, ctx), ctx), ctx)
    for name in ups:
        assert method.kept[name].float().mean() == pytest.approx(0.5, abs=1e-3)
        assert torch.equal(model.get_submodule(name).weight != 0, method.kept[name])


@pytest.mark.parametrize("lora", ["mask_lora", "none"])
def test_none_retrains_a_model_that_is_sparse_already(lora: str) -> None:
    model = magnitude_pruned("tiny_opt")
    method = perp(criterion="none", lora=lora)
    ctx = FakeContext(method, batches(3))
    before, zeros = logits(model), {key: weight == 0 for key, weight in weights(model).items()}
    model = method.prepare(model, ctx)
    assert torch.allclose(logits(model), before, atol=1e-6)
    after = method.finalize(method.fit(model, ctx), ctx)
    assert all(torch.equal(weight == 0, zeros[key]) for key, weight in weights(after).items())
    assert not torch.allclose(logits(after), before, atol=1e-3)


def test_reconstruction_sees_the_reconstructed_prefix_and_dense_targets() -> None:
    """The recorded error of every map is that of its dense weight on what enters it in the finished blocks before it."""
    method, model, ctx = prepared("tiny_llama", classify=False, mode="reconstruct")
    dense, first = weights(build("tiny_llama", classify=False)), layers(model)[1]
    partly = copy.deepcopy(model)
    second = {id(module) for module in first.modules()}
    names = [key for key, module in prunable(model).items() if id(module) in second]
    pruned = weights(magnitude_pruned_lm())
    with torch.no_grad():
        for key in names:
            partly.get_submodule(key).weight.copy_(pruned[key])
    entering = plainly(partly, ctx.calibration())
    for key in names:
        x = entering[key].flatten(0, -2).double()
        size = (x @ dense[key].double().T).square().sum()
        for weight, error in zip((pruned[key], weights(model)[key]), method.errors[key], strict=True):
            change = (weight - dense[key]).detach().double()
            assert float((x @ change.T).square().sum() / size.detach()) == pytest.approx(error, rel=1e-3)


def magnitude_pruned_lm() -> nn.Module:
    method = pruner("magnitude", 0.5, "unstructured")
    ctx = FakeContext(method, [])
    return method.finalize(method.prepare(build("tiny_llama", classify=False), ctx), ctx)


@pytest.mark.parametrize("lora", ["mask_lora", "scale_lora"])
def test_half_precision_folds_to_what_it_computes(lora: str) -> None:
    method = perp(lora=lora)
    ctx = FakeContext(method, batches(2))
    model = method.fit(method.prepare(build("tiny_gpt2").bfloat16(), ctx), ctx)
    assert all(layer.lora_A.dtype == torch.float32 for layer in wrapped(model).values())
    seen = logits(model)
    final = method.finalize(model, ctx)
    assert torch.equal(logits(final), seen) and {p.dtype for p in final.parameters()} == {torch.bfloat16}


# What trains


def test_the_subset_says_what_trains() -> None:
    for subset, suffixes in ((["biases"], (".bias",)), (["norms"], ("LayerNorm.weight", "LayerNorm.bias")), ([], ())):
        _, model, _ = prepared("tiny_bert", subset=subset)
        own = {n for n in trainable(model) if "lora_" not in n and not n.startswith(("classifier", "bert.pooler"))}
        assert own == {n for n, _ in model.named_parameters() if n.endswith(suffixes) and not n.startswith(("classifier", "bert.pooler"))}
        assert bool(own) == bool(subset)
        assert {"classifier.weight", "bert.pooler.dense.bias"} <= trainable(model).keys()


def test_the_whole_subset_moves_and_nothing_else() -> None:
    method, model, ctx = prepared("tiny_opt")
    before = snapshot(model)
    method.fit(model, ctx)
    moved = changed(model, before)
    assert moved == trainable(model).keys()
    assert {"fc1.base_layer.bias", "self_attn_layer_norm.weight"} <= {n.split("layers.0.")[-1] for n in moved}
    assert not any(n.endswith("base_layer.weight") for n in moved)


def test_a_language_models_head_stays() -> None:
    _, model, _ = prepared("tiny_llama", classify=False)
    assert not any("lm_head" in n or "embed" in n for n in trainable(model))
    assert len(wrapped(model)) == len(prunable(model)) == sum(isinstance(m, HadamardLora) for m in model.modules())


@pytest.mark.parametrize(("name", "width", "depth", "wide"), [("opt_125m", 768, 12, 3072), ("roberta_base", 768, 12, 3072)])
def test_counts_on_real_architectures(name: str, width: int, depth: int, wide: int) -> None:
    """r (n + k) a map, its n biases, and 2 d a norm: two norms a layer and one outside the layers."""
    method = perp(r=16, alpha=32.0)
    model = method.prepare(build(name, classify=name != "opt_125m", device="meta"), FakeContext(method, []))
    counted = sum(size for n, size in trainable(model).items() if not n.startswith("classifier"))
    per_layer = 16 * (4 * 2 * width + 2 * (width + wide)) + 4 * width + wide + width + 2 * 2 * width
    assert counted == depth * per_layer + 2 * width


# Memory


def ledger(method: Method) -> dict:
    ctx = FakeContext(method, [])
    model = method.prepare(build("tiny_bert"), ctx)
    batch = inputs() | {"labels": torch.tensor([0, 1, 0, 1])}
    optimizer = method.optimizer(model, ctx.settings)
    method.loss(model, batch, ctx).backward()
    optimizer.step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.ndim)
    model.zero_grad()
    return memory_ledger(model, batch, lambda m, b: method.loss(m, b, ctx), state) | {"trained": sum(trainable(model).values())}


@pytest.mark.parametrize("lora", ["mask_lora", "scale_lora"])
def test_memory_is_that_of_the_trained_subset(lora: str) -> None:
    """Gradients and optimizer state hold what trains, and the backward pass keeps no more than LoRA's, not W' or B A of any map."""
    masked, plain = ledger(perp(lora=lora)), ledger(perp(lora="lora"))
    assert masked["gradients"] == 4 * masked["trained"] and masked["optimizer"] == 8 * masked["trained"]
    assert masked["activations"] <= plain["activations"]


# Configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": "none", "subset": []}, "retrains nothing"),
        ({"mode": "reconstruct", "lora": "lora"}, "cannot reconstruct under a mask"),
        ({"mode": "reconstruct", "criterion": "none"}, "no dense weights"),
        ({"subset": ["head"]}, "method.subset=head is not allowed"),
        ({"sparsity": 0.4, "pattern": "2:4"}, "contradicts"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        perp(**changes)


def test_a_model_without_biases_has_no_subset_of_them() -> None:
    with pytest.raises(UserError, match="llama has no biases"):
        prepared("tiny_llama", subset=["biases"], lora="none")


def test_traits_follow_the_configuration() -> None:
    traits = lambda **changes: perp(**changes).config.adjust(Perp.traits)  # noqa: E731
    assert traits().sparse and traits().randomness == ("init",) and not traits().calibration
    assert traits(criterion="wanda").calibration and traits(criterion="random").randomness == ("mask", "init")
    assert not traits(lora="lora").sparse and traits(criterion="none").exact_at_init
    assert traits(lora="none", subset=["biases"]).biases and traits(lora="scale_lora").randomness == ()
    rebuilt = traits(mode="reconstruct")
    assert rebuilt.calibration and not rebuilt.trains and not rebuilt.gradients


def test_shapes_of_factors_are_the_maps() -> None:
    _, model, _ = prepared("tiny_gpt2", lora="lora")
    for layer in wrapped(model).values():
        assert isinstance(layer, DenseLora)
        out, into = map_shape(layer.base_layer)
        assert (layer.lora_B.shape, layer.lora_A.shape) == ((out, 4), (4, into))
