"""Wanda, SparseGPT and DSnoT on whole models: masks equal the papers' formulas, and each does on real layers what it is for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from methods.adapters.wrapped import map_shape, weight_and_bias
from methods.base import Method
from methods.blockwise import walk
from methods.maths.masks import row_mask
from methods.maths.obs import sparsegpt
from methods.maths.statistics import Gram, output_error
from methods.maths.wanda import cumulative_mask
from methods.prune.dsnot import Dsnot
from methods.prune.sparsegpt import Sparsegpt
from methods.prune.wanda import Wanda
from methods.roles import layers, prunable
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot
from tests.methods.test_blockwise import plainly

COMMON = {"sparsity": 0.5, "pattern": "unstructured", "allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.05, "retrain": False}
OWN: dict[type[Method], dict[str, Any]] = {
    Wanda: {"scope": "row", "variant": False},
    Sparsegpt: {"block": 128, "damp": 0.01},
    Dsnot: {
        "criterion": "wanda", "targets": ["q", "k", "v", "o"], "cycles": 50, "threshold": 0.1, "power": 1.0, "same_sign": "auto",
        "damp": 0.01,
    },
}  # fmt: skip
FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_opt"]


def method(kind: type[Method], **changes: Any) -> Method:
    return kind(kind.Config(**COMMON | OWN[kind] | changes))


def pruned(kind: type[Method], model: nn.Module, **changes: Any) -> tuple[Method, nn.Module, FakeContext]:
    m = method(kind, **changes)
    ctx = FakeContext(m, batches(3))
    return m, m.prepare(model, ctx), ctx


def canonical(model: nn.Module, name: str) -> Tensor:
    module = model.get_submodule(name)
    return (module.weight.T if isinstance(module, Conv1D) else module.weight).detach()


def inputs(model: nn.Module) -> dict[str, Tensor]:
    """Float64 inputs (tokens, in) of all maps of the dense model on the fake calibration text."""
    ids = FakeContext(method(Wanda), batches(1)).calibration()
    return {name: x.flatten(0, -2).double() for name, x in plainly(model, ids).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_wanda_keeps_in_each_row_what_the_formula_ranks_first(name: str) -> None:
    """On the first block, whose inputs nothing has changed yet."""
    dense = build(name)
    first = {id(module) for module in layers(dense)[0].modules()}
    x = inputs(dense)
    _, model, _ = pruned(Wanda, build(name))
    for key, module in prunable(dense).items():
        weight, kept = canonical(dense, key).double(), canonical(model, key) != 0
        half = weight.shape[1] // 2
        assert (kept.sum(-1) == half).all()
        assert torch.equal(canonical(model, key)[kept], canonical(dense, key)[kept])
        if id(module) in first:
            score = weight.abs() * x[key].norm(dim=0)
            assert torch.equal(score.topk(half).indices.sort().values, kept.nonzero()[:, 1].view(-1, half))


def test_wanda_sees_the_pruned_prefix() -> None:
    """The second block's mask is that of inputs from the pruned first block, not from the dense one."""
    dense, (_, model, _) = build("tiny_llama"), pruned(Wanda, build("tiny_llama"))
    half = build("tiny_llama")
    pruned_first = {name: m for name, m in prunable(model).items() if ".0." in name}
    with torch.no_grad():
        for name, module in pruned_first.items():
            half.get_submodule(name).weight.copy_(module.weight)
    differs = 0
    prefix, plain = inputs(half), inputs(dense)
    for name in (n for n in prunable(dense) if ".1." in n):
        weight = canonical(dense, name).double()
        expected = row_mask(weight.abs() * prefix[name].norm(dim=0), 0.5)
        assert torch.equal(canonical(model, name) != 0, expected)
        differs += int((row_mask(weight.abs() * plain[name].norm(dim=0), 0.5) != expected).sum())
    assert differs > 0


def test_wanda_is_magnitude_on_white_inputs_and_blind_to_a_rescaled_feature() -> None:
    m = method(Wanda)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    module = nn.Linear(16, 8)
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    white, seen, scaled = m.statistic(module), m.statistic(module), m.statistic(module)
    white.add(torch.eye(16))
    seen.add(x)
    c = torch.linspace(0.1, 5, 16)
    scaled.add(x * c)
    assert torch.equal(m.edit("", weight, white, 0.5)[1], row_mask(weight.abs(), 0.5))
    assert torch.equal(m.edit("", weight, seen, 0.5)[1], m.edit("", weight / c, scaled, 0.5)[1])
    assert not torch.equal(m.edit("", weight, seen, 0.5)[1], m.edit("", weight, scaled, 0.5)[1])


def test_wandas_variant_gives_rows_their_own_counts_at_the_layers_sparsity() -> None:
    score = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)) ** torch.linspace(0.5, 8, 64)[:, None]
    mask = cumulative_mask(score, 0.5)
    counts = mask.sum(-1)
    assert abs(mask.float().mean() - 0.5) <= 1e-3 and counts.max() > counts.min() + 10
    shares = score.masked_fill(mask, 0).sum(-1) / score.sum(-1)
    cheapest = score.masked_fill(~mask, torch.inf).amin(-1) / score.sum(-1)
    assert shares.max() < (shares + cheapest).min() + 1e-6  # one alpha lies between what went and what would have gone next


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_patterns_lie_along_the_inputs(kind: type[Method], pattern: str) -> None:
    n, m = map(int, pattern.split(":"))
    for name in ("tiny_gpt2", "tiny_llama"):
        _, model, _ = pruned(kind, build(name), pattern=pattern)
        for key in prunable(model):
            assert ((canonical(model, key) != 0).unflatten(-1, (-1, m)).sum(-1) == n).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_sparsegpt_is_its_formula_on_every_layer_and_counts_exactly(name: str) -> None:
    dense = build(name)
    x = inputs(dense)
    first = {id(module) for module in layers(dense)[0].modules()}
    _, model, _ = pruned(Sparsegpt, build(name), block=16, sparsity=0.75)
    for key, module in prunable(dense).items():
        weight = canonical(model, key)
        for part in weight.split(16, dim=1):
            assert int((part == 0).sum()) == round(0.75 * part.numel())
        if id(module) in first:
            gram = (x[key].T @ x[key]).float()
            expected, mask = sparsegpt(canonical(dense, key), gram, 0.75, None, 16, 0.01)
            agree = (weight != 0) == mask
            assert agree.float().mean() > 0.995  # float32 sums in another order may swap near ties
            torch.testing.assert_close(weight[agree], expected[agree], rtol=5e-2, atol=2e-3)


def test_dsnot_without_cycles_is_its_first_mask_and_changes_only_the_targets() -> None:
    _, wanda, _ = pruned(Wanda, build("tiny_llama"))
    _, zero, _ = pruned(Dsnot, build("tiny_llama"), cycles=0)
    assert not changed(zero, snapshot(wanda))
    m, refined, ctx = pruned(Dsnot, build("tiny_llama"), threshold=0.0, targets=["q", "k", "v", "o"])
    different = {name for name, p in refined.named_parameters() if ".0." in name and not torch.equal(p, wanda.get_parameter(name))}
    assert different and all("self_attn" in name for name in different)
    assert m.measure(refined, ctx)["swapped"] > 0
    for key in prunable(refined):
        kept = canonical(refined, key) != 0
        assert (kept.sum(-1) == kept.shape[1] // 2).all()
        assert torch.equal(canonical(refined, key)[kept], canonical(build("tiny_llama"), key)[kept])


@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt"])
def test_dsnot_starts_from_other_criteria(criterion: str) -> None:
    _, model, _ = pruned(Dsnot, build("tiny_bert"), criterion=criterion, cycles=0)
    dense = build("tiny_bert")
    x = inputs(dense)
    first = {id(module) for module in layers(dense)[0].modules()}
    for key, module in prunable(dense).items():
        if id(module) in first:
            weight = canonical(dense, key).double()
            h = x[key].T @ x[key]
            h += 0.01 * h.diagonal().mean() * torch.eye(len(h))
            u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True).diagonal()
            score = weight.abs() if criterion == "magnitude" else weight.abs() / u
            assert ((canonical(model, key) != 0) == row_mask(score, 0.5)).float().mean() > 0.995


@pytest.mark.parametrize("kind", list(OWN))
@pytest.mark.parametrize("allocation", ["global", "owl"])
def test_allocations_keep_the_whole_and_differ_between_layers(kind: type[Method], allocation: str) -> None:
    model = build("tiny_llama")
    with torch.no_grad():  # a block with outliers and one with large weights
        layers(model)[0].mlp.up_proj.weight[:, :2] *= 40
        layers(model)[1].mlp.down_proj.weight *= 3
    m, model, ctx = pruned(kind, model, allocation=allocation)
    measured = m.measure(model, ctx)
    shares = measured["sparsity_by_parameter"]
    assert measured["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert max(shares.values()) - min(shares.values()) > 0.05
    if allocation == "owl":
        blocks = [{s for n, s in shares.items() if f".{i}." in n} for i in (0, 1)]
        assert max(blocks[0]) < min(blocks[1])


@pytest.mark.parametrize("kind", list(OWN))
def test_retraining_keeps_the_zeros_and_finalize_leaves_a_stock_model(kind: type[Method]) -> None:
    m, model, ctx = pruned(kind, build("tiny_gpt2"), retrain=True)
    zeros = {key: canonical(model, key) == 0 for key in prunable(model)}
    before = snapshot(model)
    model = m.fit(model, ctx)
    assert set(changed(model, before)) >= {f"{key}.weight" for key in zeros}
    fitted = logits(model)
    model = m.finalize(model, ctx)
    assert torch.equal(logits(model), fitted)
    assert all(torch.equal(canonical(model, key) == 0, zero) for key, zero in zeros.items())
    assert not [name for name, _ in model.named_buffers() if name.endswith("_mask")]
    assert ctx.phases == ["calibrate", "main"]


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (Wanda, {"allocation": "owl", "owl_reach": 0.3}, r"method.owl_reach=0.3 could empty"),
        (Wanda, {"allocation": "owl", "pattern": "2:4"}, r"method.allocation=uniform"),
        (Wanda, {"variant": True, "scope": "layer"}, r"method.variant=true is for"),
        (Sparsegpt, {"block": 6, "pattern": "2:4"}, r"method.block=6 cuts"),
        (Dsnot, {"criterion": "random"}, r"allowed: magnitude, wanda, sparsegpt"),
    ],
)
def test_contradictions_are_refused(kind: type[Method], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(kind, **changes)


def test_on_real_layers_sparsegpt_beats_wanda_and_wanda_magnitude(smollm2_dir, shared_data) -> None:
    """Output error |X (W - W')^T|^2 of every map of the first two blocks on BoolQ passages, calibrated on the same dense inputs."""
    import pyarrow.parquet as pq

    passages = pq.read_table(shared_data / "commonsense_hub/boolq/train.parquet")["passage"].to_pylist()[:40]
    ids = AutoTokenizer.from_pretrained(smollm2_dir)("\n\n".join(dict.fromkeys(passages)), verbose=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    model.model.layers = model.model.layers[:2]
    errors: dict[str, list[float]] = {}

    def compare(name: str, module: nn.Module, gram: Gram) -> None:
        weight, g = weight_and_bias(module)[0], gram.value
        wanda = weight * row_mask(weight.abs() * g.diagonal().sqrt(), 0.5)
        others = (sparsegpt(weight, g, 0.5, None, 128, 0.01)[0], wanda, weight * row_mask(weight.abs(), 0.5))
        errors[name] = [output_error(weight - other, g) for other in others]

    walk(model, torch.tensor(ids[: 8 * 128]).view(8, 128), lambda module: Gram(map_shape(module)[1]), compare)
    wrong = {name: e for name, e in errors.items() if not e[0] <= e[1] <= e[2]}
    assert len(errors) == 14 and not wrong
