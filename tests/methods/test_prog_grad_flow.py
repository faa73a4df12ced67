"""MdGF, SdGF and SR-STE: phases, stage boundaries, gradients of whole steps, exact N:M at the end, memory."""

import pytest
import torch
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass, sparse_semi_structured_to_dense_cutlass

from harness.ledger import memory_ledger
from methods.adapters.own_base import wrapped
from methods.base import Method
from methods.baselines.full_ft import FullFt
from methods.prune.prog_grad_flow import DENSE, ProgGradFlow
from methods.roles import embeddings, prunable, prunable_parameters, weight_is_transposed
from methods.spec import Diverged, UserError
from tests.methods.adapted import weight_of
from tests.methods.fakes import FakeContext, batches, build, inputs, logits, snapshot, trainable

VALUES = {
    "mode": "mask_linear", "pattern": "2:4", "dense": 0.05, "hard": 0.1, "decay": None, "scaled_gradient": False, "penalty": 2e-4,
}  # fmt: skip
MODES = ["mask_linear", "mask_exponential", "structure_stepwise", "structure_geometric", "sr_ste"]
MODELS = ["tiny_bert", "tiny_gpt2", "tiny_llama"]


def flowing(**changes: object) -> ProgGradFlow:
    return ProgGradFlow(ProgGradFlow.Config(**(VALUES | changes)))


def prepared(method: ProgGradFlow, name: str = "tiny_bert", steps: int = 4) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(steps))
    return method.prepare(build(name), ctx), ctx


def sees(method: ProgGradFlow, steps: int) -> list[tuple[int, int, float]]:
    return [tuple(method.at(step, steps)) for step in range(steps + 1)]


# Phases


def test_phases_of_the_linear_decay() -> None:
    """10 dense updates, k = 1/80 over the next 80, 10 hard ones; the first masked pass still has beta = 1."""
    seen = sees(flowing(dense=0.1), 100)
    assert seen[:10] == [DENSE] * 10 and seen[10] == (2, 4, 1.0) and seen[50] == (2, 4, 0.5)
    assert seen[89][2] == pytest.approx(1 / 80) and seen[90:] == [(2, 4, 0.0)] * 11


def test_decay_may_be_given_and_the_exponential_one_falls_to_a_hundredth() -> None:
    assert flowing(dense=0.1, decay=2e-4).at(20, 100).beta == pytest.approx(1 - 2e-3)
    method = flowing(mode="mask_exponential", dense=0.1)
    assert method.at(10, 100).beta == 1 and method.at(50, 100).beta == pytest.approx(0.1) and method.at(90, 100).beta == 0


def test_stage_boundaries_of_1_8() -> None:
    seen = sees(flowing(mode="structure_stepwise", pattern="1:8", dense=0.1), 100)
    assert seen[9] == DENSE
    for begin, n in ((10, 7), (30, 4), (50, 2), (70, 1)):
        assert seen[begin : begin + 20] == [(n, 8, 0.0)] * 20
    assert seen[90:] == [(1, 8, 0.0)] * 11


def test_stages_of_the_geometric_structure() -> None:
    seen = sees(flowing(mode="structure_geometric", pattern="1:4", dense=0.0, hard=0.2), 10)
    assert seen == [(8, 32, 0.0)] * 2 + [(4, 16, 0.0)] * 2 + [(2, 8, 0.0)] * 2 + [(1, 4, 0.0)] * 5


def test_sr_ste_is_hard_after_the_dense_phase() -> None:
    assert sees(flowing(mode="sr_ste", dense=0.25), 4) == [DENSE] + [(2, 4, 0.0)] * 4


@pytest.mark.parametrize("mode", MODES)
def test_only_the_hard_phase_is_eligible_and_it_is_hard(mode: str) -> None:
    method = flowing(mode=mode, hard=0.3)
    ctx = FakeContext(method, batches(10))
    assert [step for step in range(11) if method.eligible(step, ctx)] == [7, 8, 9, 10]
    assert {tuple(method.at(step, 10)) for step in (7, 10)} == {(2, 4, 0.0)}
    without = flowing(mode=mode, hard=0.0)
    assert without.eligible(10, ctx) and not without.eligible(9, ctx) and without.at(10, 10) == (2, 4, 0.0)


def test_a_dense_phase_has_an_update_however_short_the_run() -> None:
    assert sees(flowing(dense=0.01, mode="sr_ste"), 3)[:2] == [DENSE, (2, 4, 0.0)]


def test_state_comes_back() -> None:
    method, other = flowing(), flowing()
    for one in (method, other):
        prepared(one)
    method.on_step(None, 2, FakeContext(method, batches(4)))
    other.load_state_dict(method.state_dict())
    assert other.level.value == method.level.value != DENSE and isinstance(other.level.value.n, int)


# The model


@pytest.mark.parametrize("name", MODELS)
def test_the_start_is_the_loaded_model_and_the_hard_phase_a_masked_one(name: str) -> None:
    """Both at beta(0) = 1; hard: the logits of a stock model under 2:4 masks made by sorting."""
    stock = build(name)
    method = flowing(dense=0.0)
    model, ctx = prepared(method, name)
    assert method.level.value == (2, 4, 1.0)
    assert torch.allclose(logits(model), logits(stock), atol=1e-6)
    method.on_step(model, ctx.total_steps, ctx)
    for module in prunable(stock).values():
        masked = pruned(weight_of(module), 2, 4)
        module.weight.data = masked.T if weight_is_transposed(module) else masked
    assert torch.allclose(logits(model), logits(stock), atol=1e-6)
    assert (logits(model) - logits(build(name))).abs().max() > 1e-5


def pruned(weight: Tensor, n: int, m: int) -> Tensor:
    groups = weight.reshape(-1, m)
    return groups.scatter(1, groups.abs().argsort(1)[:, : m - n], 0.0).reshape(weight.shape)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_a_run_ends_with_exactly_n_of_each_m_in_a_stock_model(name: str, mode: str) -> None:
    method = flowing(mode=mode, pattern="1:4")
    model, ctx = prepared(method, name)
    ctx.method.fit(model, ctx)
    expected, measured = logits(model), method.measure(model, ctx)
    final = method.finalize(model, ctx)
    assert type(final) is type(build(name)) and list(final.state_dict()) == list(build(name).state_dict())
    assert torch.allclose(logits(final), expected, atol=1e-6)
    for module in prunable(final).values():
        weight = weight_of(module)
        assert ((weight != 0).view(weight.shape[0], -1, 4).sum(-1) == 1).all()
    assert measured["sparsity"] == 0.75 and set(measured["sparsity_by_parameter"]) == set(prunable_parameters(final))


def test_everything_but_the_embeddings_trains_and_no_parameter_is_added() -> None:
    model, ctx = prepared(flowing())
    tables = {id(p) for module in embeddings(model).values() for p in module.parameters()}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {n for n, p in model.named_parameters() if id(p) in tables}
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in build("tiny_bert").parameters())
    groups = ctx.method.groups(model, ctx.settings)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def gradients(method: ProgGradFlow, step: int, name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """(model, gradients of the masked weights before and after `on_gradients`) of one step in eval mode."""
    model, ctx = prepared(method, name)
    method.on_step(model, step, ctx)
    method.loss(model.eval(), ctx.rows[0], ctx).backward()
    maps = {key: layer.stock().weight for key, layer in wrapped(model).items()}
    before = {key: weight.grad.clone() for key, weight in maps.items()}
    method.on_gradients(model, step, ctx)
    return model, before, {key: weight.grad for key, weight in maps.items()}


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_sr_ste_adds_its_penalty_to_the_gradient_of_pruned_weights(name: str) -> None:
    model, before, after = gradients(flowing(mode="sr_ste", penalty=0.5), 2, name)
    for key, layer in wrapped(model).items():
        weight = weight_of(layer.stock())
        extra = 0.5 * (weight - pruned(weight, 2, 4))
        extra = extra.T if weight_is_transposed(layer.stock()) else extra
        assert torch.allclose(after[key], before[key] + extra, atol=1e-7) and extra.any()


@pytest.mark.parametrize(("mode", "step"), [("mask_linear", 2), ("structure_stepwise", 2), ("sr_ste", 0)])
def test_no_penalty_elsewhere(mode: str, step: int) -> None:
    _, before, after = gradients(flowing(mode=mode, penalty=0.5), step, "tiny_bert")
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_gradients_are_dense_unless_scaled() -> None:
    """The hard phase: pruned entries get what they would as dense ones, or with the switch nothing."""
    model, dense, _ = gradients(flowing(), 4, "tiny_bert")
    _, scaled, _ = gradients(flowing(scaled_gradient=True), 4, "tiny_bert")
    for key, layer in wrapped(model).items():
        mask = layer.mask()
        assert dense[key][~mask].any() and not scaled[key][~mask].any()
        assert torch.equal(dense[key][mask], scaled[key][mask])


def test_masks_follow_the_weights_and_pruned_entries_may_return() -> None:
    model, ctx = prepared(flowing())
    ctx.method.on_step(model, 4, ctx)
    layer = next(iter(wrapped(model).values()))
    before = layer.mask()
    with torch.no_grad():
        layer.stock().weight[~before] *= 1e6
    assert torch.equal(layer.mask(), ~before)


def test_torch_packs_the_2_4_weights() -> None:
    """Its semi-structured format holds exactly two of four; packing and unpacking would lose anything else."""
    method = flowing()
    model, ctx = prepared(method, "tiny_llama")
    final = method.finalize(ctx.method.fit(model, ctx), ctx)
    for module in prunable(final).values():
        weight = weight_of(module).half().repeat(2, 1)  # at least 32 rows
        assert torch.equal(sparse_semi_structured_to_dense_cutlass(*sparse_semi_structured_from_dense_cutlass(weight)), weight)


def test_memory_is_one_byte_a_weight_above_full_fine_tuning() -> None:
    def held(method: Method, model: nn.Module) -> dict:
        ctx = FakeContext(method, batches(4))
        model = method.prepare(model, ctx)
        method.on_step(model, 2, ctx)
        return memory_ledger(model, ctx.rows[0], lambda m, b: method.loss(m, b, ctx), 0)

    own, full = held(flowing(), build("tiny_bert")), held(FullFt(None), build("tiny_bert"))
    entries = sum(p.numel() for p in prunable_parameters(build("tiny_bert")).values())
    assert own["activations"] - full["activations"] <= entries + 1024


def test_half_precision_and_autocast_run_the_same_mask() -> None:
    model, ctx = prepared(flowing(dense=0.0))
    ctx.method.on_step(model, 4, ctx)
    layer = next(iter(wrapped(model).values()))
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    weight, bias = layer.folded()
    assert torch.equal(y, nn.functional.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
    assert layer.stock().weight.grad.dtype == torch.float32


def test_pruned_weights_shrink_under_sr_ste() -> None:
    """With a strong penalty alone (Adam's direction is its sign) every pruned entry ends nearer to zero."""
    torch.manual_seed(0)
    model, ctx = prepared(flowing(mode="sr_ste", dense=0.0, penalty=1e4))
    ctx.method.on_step(model, 0, ctx)
    masks, before = {key: layer.mask() for key, layer in wrapped(model).items()}, snapshot(model)
    ctx.rows, ctx.total_steps = ctx.rows[:1], 1
    ctx.settings = type(ctx.settings)(1e-4, 1e-4, 0.0, 0.9, 0.999, 1e-8)
    ctx.method.fit(model, ctx)
    for key, layer in wrapped(model).items():
        old = before[f"{key}.base_layer.weight"]
        pruned_entries = ~masks[key] & (old.abs() > 2e-4)
        assert (layer.stock().weight.abs()[pruned_entries] < old.abs()[pruned_entries]).all()


def test_nan_is_divergence() -> None:
    model, ctx = prepared(flowing())
    ctx.method.on_step(model, 2, ctx)
    with torch.no_grad():
        next(iter(wrapped(model).values())).stock().weight[0, 0] = torch.nan
    with pytest.raises(Diverged):
        model(**inputs())


def test_counts_on_the_meta_device() -> None:
    method = flowing()
    model = method.prepare(build("bert_base", device="meta"), FakeContext(method, []))
    assert sum(layer.stock().weight.numel() for layer in wrapped(model).values()) == 84_934_656
    assert all(f"{key}.base_layer.weight" in trainable(model) for key in wrapped(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "step"}, "method.mode=step is not allowed"),
        ({"pattern": "unstructured"}, "method.pattern=unstructured is not allowed"),
        ({"pattern": "1:6", "mode": "structure_stepwise"}, "method.pattern=1:6 cannot be reached by halving"),
        ({"dense": 1.0}, r"method.dense=1.0 is out of range; allowed: a number in \[0, 1\)"),
        ({"dense": 0.5, "hard": 0.6}, r"method.hard=0.6 is out of range; allowed: a number in \[0, 0.5\]"),
        ({"decay": 0.0}, "method.decay=0.0 is out of range"),
        ({"penalty": -1.0}, "method.penalty=-1.0 is out of range"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        flowing(**changes)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="needs input widths divisible by 96"):
        prepared(flowing(mode="structure_geometric", pattern="4:12"))


def test_traits_follow_the_start() -> None:
    adjusted = lambda **changes: flowing(**changes).config.adjust(ProgGradFlow.traits)  # noqa: E731
    assert adjusted().exact_at_init and adjusted(dense=0.0).exact_at_init
    assert not adjusted(dense=0.0, mode="sr_ste").exact_at_init and not adjusted(dense=0.0, mode="structure_stepwise").exact_at_init
    assert not adjusted(dense=0.0, hard=1.0).exact_at_init
