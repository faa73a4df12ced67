"""PST: the worked layer, closed forms against dense autograd, counts, masks, schedule, memory, export, and its baseline modes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from harness.ledger import memory_ledger
from methods.adapters.own_base import fold, keep, wrapped
from methods.baselines.full_ft import FullFt
from methods.maths.pst import Factors, PstLinear, Scales
from methods.maths.rows import Rows
from methods.roles import embeddings, head_names, prunable_parameters
from methods.sparse.pst import FactoredLinear, Pst
from methods.sparse.scored import Level
from methods.spec import Diverged, UserError
from tests.methods.adapted import count_on, shake, weight_of
from tests.methods.fakes import FakeContext, batches, build, changed, inputs, logits, snapshot, trainable

FAMILIES = ["tiny_bert", "tiny_deberta", "tiny_gpt2", "tiny_neox", "tiny_opt", "tiny_llama"]
VALUES = {
    "mode": "pst", "sparsity": 0.5, "initial_sparsity": 0.0, "initial_warmup": 0.1, "final_warmup": 0.3, "weight_rank": 8, "mask_rank": 8,
    "weight_beta": 1.0, "mask_alpha1": 1.0, "mask_alpha2": 1.0, "detach_magnitude": False, "train_head": True, "score_lr": None,
}  # fmt: skip


def pst(**changes: object) -> Pst:
    return Pst(Pst.Config(**(VALUES | changes)))


def prepared(method: Pst, name: str, steps: int = 3) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(steps))
    return method.prepare(build(name), ctx), ctx


def matrices(name: str, module: nn.Module) -> list[Tensor]:
    """The matrices (n, k) of a stock map that count apart; GPT-2 and GPT-NeoX fuse three, the latter head by head."""
    weight = weight_of(module)
    if "c_attn" in name:
        return list(weight.chunk(3))
    if "query_key_value" in name:
        heads = weight.view(4, 3, 8, 32)
        return [heads[:, part].reshape(32, 32) for part in range(3)]
    return [weight]


# The layer


def worked() -> tuple[nn.Linear, FactoredLinear]:
    base = nn.Linear(3, 2)
    layer = FactoredLinear(base, Level(0.5), Rows(), (1, 1), Scales(1.0, 1.0, 1.0, False), torch.Generator())
    values = {
        "weight_u": [[1.0], [-1.0]], "weight_v": [[0.1, 0.2, -0.3]], "mask_a": [[0.5], [1.0]], "mask_b": [[0.2, -0.4, 0.1]],
        "mask_r": [0.05, -0.05], "mask_c": [0.0, 0.1, -0.1],
    }  # fmt: skip
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[0.5, -0.2, 0.1], [-0.4, 0.3, 0.6]]))
        base.bias.copy_(torch.tensor([0.1, -0.1]))
        for name, value in values.items():
            layer.get_parameter(name).copy_(torch.tensor(value))
    return base, layer


def test_worked_layer_forward_mask_and_six_gradients() -> None:
    base, layer = worked()
    y = layer(torch.tensor([[1.0, 2.0, -1.0]]))
    assert torch.allclose(y, torch.tensor([[0.7, -1.5]]))
    assert layer.mask().tolist() == [[True, False, False], [True, False, True]]
    assert torch.allclose(layer.folded()[0], torch.tensor([[0.6, 0.0, 0.0], [-0.5, 0.0, 0.9]]))
    (y.square().sum() / 2).backward()
    expected = {
        "weight_u": [[0.154], [-1.14]], "weight_v": [[3.37, 0.3, -2.99]], "mask_a": [[0.098], [0.405]], "mask_b": [[0.96, -0.3, 1.42]],
        "mask_r": [0.56, 1.8], "mask_c": [1.17, -0.3, 1.49],
    }  # fmt: skip
    for name, value in expected.items():
        assert torch.allclose(layer.get_parameter(name).grad, torch.tensor(value), atol=1e-6), name
    assert base.weight.grad is None and base.bias.grad is None


def reference(x: Tensor, weight: Tensor, bias: Tensor, f: Factors, scales: Scales, sparsity: float) -> Tensor:
    """The layer as plain dense autograd: the mask by sorting, with slope 1 in the scores."""
    w = weight + scales.beta * f.u @ f.v
    magnitude = w.detach().abs() if scales.detach_magnitude else w.abs()
    s = magnitude + scales.alpha1 * f.a @ f.b + scales.alpha2 * (f.r[:, None] + f.c[None, :])
    m = torch.ones_like(s).flatten()
    m[s.detach().flatten().argsort()[: int(s.numel() * sparsity)]] = 0
    return nn.functional.linear(x, (m.view_as(s) + s - s.detach()) * w, bias)


def random_factors(n: int, k: int, r1: int, r2: int, seed: int, lead: tuple[int, ...] = ()) -> Factors:
    draws = torch.Generator().manual_seed(seed)
    shapes = [(n, r1), (r1, k), (n, r2), (r2, k), (n,), (k,)]
    return Factors(*(torch.randn(*lead, *shape, generator=draws, dtype=torch.float64, requires_grad=True) for shape in shapes))


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("n", "k", "sparsity"), [(5, 6, 0.5), (40, 24, 0.0), (24, 40, 0.9)])
def test_equals_an_independent_dense_autograd_layer(n: int, k: int, sparsity: float, detach: bool) -> None:
    """Forward and all seven gradients at unequal ranks and scales; W and b get none."""
    scales = Scales(0.7, 1.3, -0.4, detach)
    draws = torch.Generator().manual_seed(n)
    x, weight, bias = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in [(2, 3, k), (n, k), (n,)])
    target = torch.randn(2, 3, n, generator=draws, dtype=torch.float64)
    results = []
    for own in (True, False):
        f, into = random_factors(n, k, 2, 3, seed=k), x.clone().requires_grad_()
        frozen = [weight.clone(), bias.clone()]
        y = PstLinear.apply(into, *frozen, sparsity, scales, Rows(), *f) if own else reference(into, *frozen, f, scales, sparsity)
        (y - target).square().sum().backward()
        results.append([y.detach(), into.grad, *(factor.grad for factor in f)])
        assert all(t.grad is None for t in frozen)
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-10, rtol=1e-10)


def test_closed_forms_of_the_gradients() -> None:
    """Written out for one layer of 5 x 6: G, D = G * W_t, dL/dW_t = G * M + G * |W_t|."""
    f = random_factors(5, 6, 2, 3, seed=1)
    u, v, a, b, r, c = (t.detach() for t in f)
    draws = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in [(4, 6), (5, 6)])
    y = PstLinear.apply(x, weight, None, 0.5, Scales(0.5, 2.0, 3.0, False), Rows(), *f)
    y.square().sum().backward()
    w = weight + 0.5 * u @ v
    s = w.abs() + 2.0 * a @ b + 3.0 * (r[:, None] + c)
    m = (s > s.flatten().sort().values[14]).double()
    assert m.sum() == 15 and torch.allclose(y.detach(), x @ (m * w).T)
    g = (2 * y.detach()).T @ x
    d, for_w = g * w, g * m + g * w.abs()
    expected = [0.5 * for_w @ v.T, 0.5 * u.T @ for_w, 2.0 * d @ b.T, 2.0 * a.T @ d, 3.0 * d.sum(1), 3.0 * d.sum(0)]
    for factor, gradient in zip(f, expected, strict=True):
        assert torch.allclose(factor.grad, gradient, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_fused_map_is_three_layers(groups: int) -> None:
    """Outputs, gradients and zeros of the fused map are those of three maps of their own."""
    rows, scales, k = Rows(3, groups), Scales(1.0, 1.0, 1.0, False), 7
    f = random_factors(4, k, 2, 2, seed=5, lead=(3,))
    draws = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(*shape, generator=draws, dtype=torch.float64) for shape in [(2, k), (12, k), (12,)])
    y = rows.split(PstLinear.apply(x, weight, bias, 0.3, scales, rows, *f).mT)
    parts = []
    for part in range(3):
        own = Factors(*(t[part] for t in f))
        parts.append(reference(x, rows.split(weight)[part], rows.split(bias)[part], own, scales, 0.3).T)
    assert torch.allclose(y, torch.stack(parts))
    for ours, theirs in zip(torch.autograd.grad(y.pow(3).sum(), f), torch.autograd.grad(torch.stack(parts).pow(3).sum(), f), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_neox"])
def test_exact_counts_for_random_factors(name: str, sparsity: float) -> None:
    method = pst(sparsity=sparsity)
    model, ctx = prepared(method, name)
    shake(model)
    method.on_step(model, 3, ctx)
    final = method.finalize(model, ctx)
    for key in prunable_parameters(final):
        for matrix in matrices(key, final.get_submodule(key.removesuffix(".weight"))):
            assert (matrix == 0).sum() == int(sparsity * matrix.numel())


def test_rows_and_columns_of_a_map_that_is_not_square() -> None:
    """A large R keeps whole outputs, a large C whole inputs."""
    for stock in (nn.Linear(6, 4), Conv1D(4, 6)):
        layer = FactoredLinear(stock, Level(0.5), Rows(), (2, 2), Scales(1.0, 1.0, 1.0, False), torch.Generator())
        with torch.no_grad():
            layer.mask_r[1], layer.mask_r[2] = 9.0, 9.0
            assert layer.mask().all(1).tolist() == [False, True, True, False]
            layer.mask_r.zero_()
            layer.mask_c[0], layer.mask_c[3] = 9.0, 9.0
            assert layer.mask().all(0)[[0, 3]].all() and layer.mask()[:, [1, 2, 4, 5]].sum() == 4


# The method


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bert_base", 2_820_096), ("roberta_base", 2_820_096), ("gpt2", 2_820_096), ("bert_large", 7_520_256), ("roberta_large", 7_520_256),
        ("gpt2_medium", 7_520_256), ("llama2_7b", 42_475_520), ("llama3_8b", 44_564_480), ("minilm", 705_024),
    ],
)  # fmt: skip
def test_published_counts(name: str, parameters: int) -> None:
    assert count_on(pst(), name, classify="llama" not in name) == parameters


@pytest.mark.parametrize(("name", "share"), [("bert_base", 0.0145), ("minilm", 0.0212)])
def test_share_of_what_movement_pruning_trains(name: str, share: float) -> None:
    """All weights of the model and a score for each that may be pruned."""
    model = build(name, device="meta")
    weights = sum(p.numel() for n, p in model.named_parameters() if n not in head_names(model))
    scores = sum(p.numel() for p in prunable_parameters(model).values())
    assert count_on(pst(), name) / (weights + scores) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_start_is_the_loaded_model_and_one_shot_magnitude_pruning(name: str) -> None:
    """Logits at s = 0; at s = 0.5 the mask of torch.nn.utils.prune, entry by entry."""
    stock = build(name)
    method = pst()
    model, ctx = prepared(method, name)
    assert torch.allclose(logits(model), logits(stock), atol=1e-6)
    method.on_step(model, ctx.total_steps, ctx)
    final = method.finalize(model, ctx)
    assert len(prunable_parameters(final)) == len(wrapped(model)) + len(prunable_parameters(stock))
    for key in prunable_parameters(stock):
        path = key.removesuffix(".weight")
        for before, after in zip(*(matrices(key, m.get_submodule(path)) for m in (stock, final)), strict=True):
            probe = nn.Linear(before.shape[1], before.shape[0], bias=False)
            probe.weight = nn.Parameter(before.contiguous())
            expected = prune.l1_unstructured(probe, "weight", amount=int(0.5 * before.numel()))
            assert torch.equal(after, expected.weight)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_factors_and_head_train_and_the_first_step_moves_what_it_can(name: str) -> None:
    """U and A have zero gradients on step 1, since V = B = 0; V, B, R and C have not."""
    model, ctx = prepared(pst(), name, steps=1)
    gradients: dict[str, bool] = {}
    ctx.probe = lambda m: gradients.update({n: bool(p.grad.any()) for n, p in m.named_parameters() if p.requires_grad})
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    heads = head_names(model)
    factors = {"weight_u", "weight_v", "mask_a", "mask_b", "mask_r", "mask_c"}
    assert {n.rpartition(".")[2] for n in trainable(model) if n not in heads} == factors
    assert heads <= set(trainable(model)) and changed(model, before) <= set(trainable(model))
    for key, moved in gradients.items():
        if key not in heads:
            assert moved == (key.rpartition(".")[2] not in ("weight_u", "mask_a"))


def test_schedule_eligibility_and_what_a_resume_restores() -> None:
    method = pst(sparsity=0.9)
    model, ctx = prepared(method, "tiny_bert", steps=10)
    levels = []
    for step in range(10):
        method.on_step(model, step, ctx)
        levels.append(method.level.value)
        method.on_update(model, step + 1, ctx)
    assert levels[:2] == [0.0, 0.0] and levels[8:] == [0.9, 0.9] and method.level.value == 0.9
    assert levels[4] == pytest.approx(0.9 * (1 - 0.5**3))
    assert [step for step in range(1, 11) if method.eligible(step, ctx)] == [8, 9, 10]
    other, resumed = pst(sparsity=0.9), None
    resumed, _ = prepared(other, "tiny_bert")
    other.load_state_dict(method.state_dict())
    assert all(layer.level is other.level and layer.level.value == 0.9 for layer in wrapped(resumed).values())


def test_evaluation_uses_the_mask() -> None:
    method = pst(sparsity=0.9)
    model, ctx = prepared(method, "tiny_bert")
    dense = logits(model)
    method.on_update(model, ctx.total_steps, ctx)
    sparse = logits(model)
    assert (dense - sparse).abs().max() > 1e-4
    final = method.finalize(model, ctx)
    assert torch.allclose(logits(final), sparse, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_export_is_a_stock_model_and_the_loaded_weights_are_still_there(name: str) -> None:
    method = pst()
    loaded = build(name)
    model, ctx = prepared(method, name)
    ctx.method.fit(model, ctx)
    shake(model, 0.05)
    expected, measured, kept = logits(model), method.measure(model, ctx), keep(model)
    layers = {key.removesuffix(".base_layer"): layer for key, layer in wrapped(model).items()}
    assert all(torch.equal(layer.stock().weight, loaded.get_submodule(key).weight) for key, layer in layers.items())
    final = method.finalize(model, ctx)
    assert type(final) is type(loaded) and list(final.state_dict()) == list(loaded.state_dict())
    assert torch.allclose(logits(final), expected, atol=1e-6)
    zeros = sum(int((w == 0).sum()) for w in prunable_parameters(final).values())
    assert zeros / measured["prunable"] == measured["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert set(measured["sparsity_by_parameter"]) == set(prunable_parameters(final))
    for one, (key, _) in zip(kept, layers.items(), strict=True):  # what `refold` puts back
        assert torch.equal(one.weight, loaded.get_submodule(key).weight)


def test_half_precision_keeps_factors_and_scores_in_float32() -> None:
    """Updates of U V that vanish in bfloat16 weights still move the scores."""
    method = pst()
    ctx = FakeContext(method, batches(3))
    model = method.prepare(build("tiny_llama").bfloat16(), ctx)
    heads = head_names(model)
    assert {p.dtype for n, p in model.named_parameters() if p.requires_grad and n not in heads} == {torch.float32}
    layer = next(iter(wrapped(model).values()))
    shake(model, 1e-4)
    method.on_step(model, 3, ctx)
    weight = layer.stock().weight.float()
    scores = (weight + layer.weight_u @ layer.weight_v).abs() + layer.mask_a @ layer.mask_b + layer.mask_r[:, None] + layer.mask_c
    assert torch.equal(layer.mask(), scores > scores.flatten().kthvalue(weight.numel() // 2).values)
    method.loss(model, ctx.rows[0], ctx).backward()
    assert layer.mask_b.grad.dtype == torch.float32 and layer.mask_b.grad.any()
    expected = logits(model)
    final = method.finalize(model, ctx)
    assert {p.dtype for p in final.parameters()} == {torch.bfloat16} and torch.equal(logits(final), expected)


def test_autocast_touches_the_product_alone() -> None:
    base = nn.Linear(16, 8)
    layer = FactoredLinear(base, Level(0.5), Rows(), (2, 2), Scales(1.0, 1.0, 1.0, False), torch.Generator().manual_seed(0))
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().square().sum().backward()
    weight, bias = layer.folded()
    assert torch.equal(y, nn.functional.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()))
    assert all(p.grad.dtype == torch.float32 for p in layer.factors)


def test_the_head_stays_random_on_demand_and_scores_have_their_own_rate() -> None:
    model, ctx = prepared(pst(train_head=False, score_lr=0.5), "tiny_bert")
    heads = head_names(model)
    assert heads and not heads & set(trainable(model))
    groups = ctx.method.groups(model, ctx.settings)
    names = {id(p): n.rpartition(".")[2] for n, p in model.named_parameters()}
    rates = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rates == {
        "weight_u": (1e-2, 0.1), "weight_v": (1e-2, 0.1), "mask_a": (0.5, 0), "mask_b": (0.5, 0), "mask_r": (0.5, 0), "mask_c": (0.5, 0)
    }  # fmt: skip


def test_it_learns_to_keep_what_the_loss_needs() -> None:
    """Half of the inputs matter, and magnitude would keep the other half: C and B must turn the mask round."""
    torch.manual_seed(0)
    base = nn.Linear(16, 8, bias=False)
    with torch.no_grad():
        base.weight.copy_(0.1 * torch.randn(8, 16))
        base.weight[:, 8:] += 0.5
    layer = FactoredLinear(base, Level(0.5), Rows(), (1, 4), Scales(0.0, 1.0, 1.0, False), torch.Generator().manual_seed(0))
    useful = layer.base_layer.weight.detach().clone()
    useful[:, 8:] = 0
    assert not layer.mask()[:, :8].any()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(100):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (layer(x) - x @ useful.T).square().mean().backward()
        optimizer.step()
    assert layer.mask()[:, :8].float().mean() > 0.9


# Memory


def ledger(method: object, model: nn.Module) -> dict:
    ctx = FakeContext(method, [])
    ctx.total_steps = 10
    model = method.prepare(model, ctx)
    if isinstance(method, Pst):
        method.on_step(model, ctx.total_steps, ctx)
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 100, (2, 16), generator=draws)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
    optimizer = method.optimizer(model, ctx.settings)
    method.loss(model, batch, ctx).backward()
    optimizer.step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.ndim)
    model.zero_grad()
    return memory_ledger(model, batch, lambda m, b: method.loss(m, b, ctx), state)


def test_memory_is_one_byte_a_weight_and_the_factors() -> None:
    """Gradients and optimizer state hold the factors and the head alone; for the backward pass there is M and no other such matrix."""
    own, full = ledger(pst(), build("tiny_bert")), ledger(FullFt(None), build("tiny_bert"))
    model, _ = prepared(pst(), "tiny_bert")
    trained = sum(trainable(model).values())
    entries = sum(p.numel() for p in prunable_parameters(build("tiny_bert")).values())
    assert own["gradients"] == 4 * trained and own["optimizer"] == 8 * trained
    inputs_kept = own["activations"] - full["activations"]
    assert inputs_kept <= entries + 1024
    movement = ledger(pst(mode="movement"), build("tiny_bert"))
    assert movement["gradients"] == full["gradients"] + 4 * entries - embedded_bytes("tiny_bert")
    assert movement["activations"] - full["activations"] <= entries + 1024


def embedded_bytes(name: str) -> int:
    return 4 * sum(p.numel() for module in embeddings(build(name)).values() for p in module.parameters())


# The baselines in the same framework


@pytest.mark.parametrize(("name", "mode"), [("tiny_bert", "magnitude"), ("tiny_neox", "movement"), ("tiny_gpt2", "movement")])
def test_modes_train_everything_but_the_embeddings(name: str, mode: str) -> None:
    method = pst(mode=mode)
    model, ctx = prepared(method, name)
    assert torch.allclose(logits(model), logits(build(name)), atol=1e-6)
    frozen = {id(p) for module in embeddings(model).values() for p in module.parameters()}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {n for n, p in model.named_parameters() if id(p) in frozen}
    extra = sum(size for key, size in trainable(model).items() if key.endswith(".mask_scores"))
    assert extra == (sum(p.numel() for p in prunable_parameters(build(name)).values()) if mode == "movement" else 0)
    ctx.method.fit(model, ctx)
    expected = logits(model)
    final = method.finalize(model, ctx)
    assert torch.allclose(logits(final), expected, atol=1e-6)
    for key in prunable_parameters(final):
        for matrix in matrices(key, final.get_submodule(key.removesuffix(".weight"))):
            assert (matrix == 0).sum() == int(0.5 * matrix.numel())


@pytest.mark.parametrize("detach", [True, False])
def test_magnitude_mode_masks_by_the_current_weight_and_pruned_entries_may_return(detach: bool) -> None:
    method = pst(mode="magnitude", detach_magnitude=detach)
    model, ctx = prepared(method, "tiny_bert")
    method.on_step(model, ctx.total_steps, ctx)
    layer = next(iter(wrapped(model).values()))
    weight, mask = layer.stock().weight, layer.mask()
    assert torch.equal(mask, weight.abs() > weight.abs().flatten().kthvalue(weight.numel() // 2).values)
    model.eval()(**batches(1)[0]).loss.backward()
    g_masked, pruned = weight.grad[mask], weight.grad[~mask]
    assert g_masked.any() and bool(pruned.any()) == (not detach)
    with torch.no_grad():
        weight[~mask] *= 100
    assert (layer.mask() & ~mask).any()


def test_a_nan_weight_is_divergence_and_never_a_mask() -> None:
    model, _ = prepared(pst(), "tiny_bert")
    with torch.no_grad():
        next(iter(wrapped(model).values())).mask_r[0] = torch.nan
    with pytest.raises(Diverged):
        model(**inputs())


def test_folding_twice_gives_the_same() -> None:
    model, ctx = prepared(pst(), "tiny_gpt2")
    shake(model)
    ctx.method.on_step(model, ctx.total_steps, ctx)
    expected = logits(model)
    fold(model)
    assert torch.allclose(logits(model), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "l0"}, "method.mode=l0 is not allowed; allowed: pst, magnitude, movement"),
        ({"sparsity": 1.0}, r"method.sparsity=1.0 is out of range; allowed: a number in \[0, 1\)"),
        ({"initial_sparsity": 0.6}, r"method.initial_sparsity=0.6 is out of range; allowed: a number in \[0, 0.5\]"),
        ({"initial_warmup": 0.8, "final_warmup": 0.3}, r"method.final_warmup=0.3 is out of range; allowed: a number in \[0, 0.2\]"),
        ({"mask_rank": 0}, "method.mask_rank=0 is out of range"),
        ({"score_lr": 0.0}, "method.score_lr=0.0 is out of range"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pst(**changes)


def test_traits_follow_the_mode() -> None:
    assert pst().config.adjust(Pst.traits) == Pst.traits and Pst.traits.randomness == ("init",)
    assert pst(mode="movement").config.adjust(Pst.traits).randomness == ()
    assert not pst(initial_sparsity=0.2).config.adjust(Pst.traits).exact_at_init
