"""Movement pruning: scores that follow -G * W, exact and soft masks, the schedule in warm-ups, and fine-tuning where nothing is pruned."""

import copy

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.own_base import wrapped
from methods.maths.rows import Rows
from methods.prune.movement import Movement, SoftLinear
from methods.roles import embeddings, head_names, prunable_parameters, weight_is_transposed
from methods.sparse.scored import FullLinear, Level, scored
from methods.spec import Diverged, UserError
from tests.methods.fakes import FakeContext, batches, build, logits, trainable

VALUES = {
    "variant": "hard", "sparsity": 0.5, "initial_sparsity": 0.0, "threshold": 0.1, "penalty": 400.0, "warmup": 0.1, "initial_warmup": 1.0,
    "final_warmup": 2.0, "score_init": 0.0, "score_lr": 1e-2,
}  # fmt: skip


def movement(**changes: object) -> Movement:
    return Movement(Movement.Config(**(VALUES | changes)))


def prepared(method: Movement, name: str, steps: int = 4) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(method, batches(steps))
    return method.prepare(build(name), ctx), ctx


def filled(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(level: float, kind: type[FullLinear] = FullLinear) -> FullLinear:
    """5 x 6 with random scores."""
    made = kind(nn.Linear(6, 5), Level(level), Rows(), 0.0)
    with torch.no_grad():
        made.stock().weight.copy_(filled((5, 6), 1))
        made.mask_scores.copy_(filled((5, 6), 2))
    return made


def test_gradients_of_scores_and_weights() -> None:
    """dL/dS = G * W everywhere, dL/dW = G * M, with G = (dL/dy)^T x."""
    one, x = layer(0.4), filled((4, 6), 3)
    y = one(x)
    y.square().sum().backward()
    order = one.mask_scores.detach().flatten().argsort()
    m = torch.ones(30)
    m[order[:12]] = 0
    weight, g = one.stock().weight.detach(), (2 * y.detach()).T @ x
    assert torch.allclose(y.detach(), x @ (m.view(5, 6) * weight).T + one.stock().bias.detach(), atol=1e-6)
    assert torch.allclose(one.mask_scores.grad, g * weight, atol=1e-4)
    assert torch.allclose(one.stock().weight.grad, g * m.view(5, 6), atol=1e-4)
    assert torch.allclose(one.stock().bias.grad, 2 * y.detach().sum(0), atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_one_sgd_step_moves_the_scores_by_the_dense_gradient_times_the_weight(name: str) -> None:
    """While all is kept: S = -lr_S (dL/dW) * W of the dense model."""
    model, _ = prepared(movement(), name)
    dense, batch = build(name), batches(1)[0]
    model.eval()(**batch).loss.backward()
    dense(**batch).loss.backward()
    scores = [one.mask_scores for one in wrapped(model).values()]
    torch.optim.SGD(scores, lr=0.1).step()
    for key, one in wrapped(model).items():
        module = dense.get_submodule(key)
        expected = -0.1 * module.weight.grad * module.weight.detach()
        expected = expected.T if weight_is_transposed(module) else expected
        assert expected.any() and torch.allclose(one.mask_scores, expected, atol=1e-8)


def test_it_learns_to_keep_what_the_loss_needs() -> None:
    """Half of the inputs matter and have the smaller weights: their scores rise above those of the other half."""
    torch.manual_seed(0)
    one = FullLinear(nn.Linear(16, 8, bias=False), Level(0.0), Rows(), 0.0)
    weight = one.stock().weight
    with torch.no_grad():
        weight.copy_(0.1 * torch.randn(8, 16))
        weight[:, 8:] += 0.5
    useful = weight.detach().clone() * 3
    useful[:, 8:] = 0
    rates = [{"params": [one.mask_scores], "lr": 1e-2}, {"params": [weight], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(rates, weight_decay=0.0)
    for step in range(100):
        one.level.value = min(0.5, step / 100)
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (one(x) - x @ useful.T).square().mean().backward()
        optimizer.step()
    assert one.mask()[:, :8].float().mean() > 0.9


@pytest.mark.parametrize(("name", "sparsity"), [("tiny_bert", 0.9), ("tiny_gpt2", 0.33), ("tiny_neox", 0.5)])
def test_exact_counts_after_training(name: str, sparsity: float) -> None:
    method = movement(sparsity=sparsity)
    model, ctx = prepared(method, name)
    method.fit(model, ctx)
    expected, measured = logits(model), method.measure(model, ctx)
    masks = {key: one.rows.split(one.mask()) for key, one in scored(model).items()}
    for mask in masks.values():
        matrices = mask if mask.ndim == 3 else mask[None]
        assert len(matrices) in (1, 3)
        assert all((~matrix).sum() == int(sparsity * matrix.numel()) for matrix in matrices)
    final = method.finalize(model, ctx)
    assert torch.allclose(logits(final), expected, atol=1e-6)
    zeros = sum(int((weight == 0).sum()) for weight in prunable_parameters(final).values())
    assert zeros == sum(int((~mask).sum()) for mask in masks.values()) == round(measured["sparsity"] * measured["prunable"])
    assert all(p.requires_grad for p in final.parameters())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_without_pruning_it_is_fine_tuning(name: str) -> None:
    """All is kept at every step: weights train as in the dense model with frozen embeddings."""
    method = movement(sparsity=0.0)
    model, ctx = prepared(method, name)
    dense = build(name)
    for table in embeddings(dense).values():
        table.requires_grad_(False)
    rates = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
    twins = [(model, method.optimizer(model, ctx.settings)), (dense, torch.optim.AdamW(dense.parameters(), weight_decay=0.1, **rates))]
    for group in [group for _, optimizer in twins for group in optimizer.param_groups if group["weight_decay"]]:
        group["weight_decay"] = 0.0
    for step, batch in enumerate(batches(3)):
        method.on_step(model, step, ctx)
        for one, optimizer in twins:
            optimizer.zero_grad()
            one.eval()(**batch).loss.backward()
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = 1e-2
            optimizer.step()
    final = method.finalize(model, ctx)
    for (key, p), q in zip(final.named_parameters(), dense.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), key


@pytest.mark.parametrize(("step", "kept"), [(0, 1.0), (100, 1.0), (101, 0.9963623), (450, 0.25625), (800, 0.15), (801, 0.15), (1000, 0.15)])
def test_schedule_in_multiples_of_the_warm_up(step: int, kept: float) -> None:
    """T = 1000, w = 100: one warm-up dense, two at the end; v = 0.15 + 0.85 (1 - (t - 100) / 700)^3 between."""
    method = movement(sparsity=0.85)
    prepared(method, "tiny_bert")
    assert 1 - method.at(step, 1000) == pytest.approx(kept, abs=1e-6)


def test_soft_threshold_and_penalty_rise_together() -> None:
    """tau(t) from 0 to tau, lambda(t) = lambda tau(t) / tau; the penalty of S = 0 is lambda(t) / 2."""
    method = movement(variant="soft", penalty=8.0)
    model, ctx = prepared(method, "tiny_gpt2")
    model.eval()
    ctx.total_steps = 1000
    plain = model(**ctx.rows[0]).loss.item()
    for step, tau in [(0, 0.0), (100, 0.0), (450, 0.1 * 0.875), (900, 0.1)]:
        method.on_step(model, step, ctx)
        assert method.level.value == pytest.approx(tau)
        assert method.loss(model, ctx.rows[0], ctx).item() == pytest.approx(plain + 8.0 * tau / 0.1 / 2, abs=1e-5)
    assert [method.eligible(step, ctx) for step in (800, 801)] == [False, True]


def test_the_penalty_is_a_mean_over_matrices_and_pushes_scores_down() -> None:
    """A fused map counts three times; per entry the slope is lambda sigmoid' / (entries of the matrix, number of matrices)."""
    method = movement(variant="soft", penalty=8.0)
    model, ctx = prepared(method, "tiny_gpt2")
    method.on_update(model, ctx.total_steps, ctx)
    layers = scored(model)
    model.eval()
    with_penalty = torch.autograd.grad(method.loss(model, ctx.rows[0], ctx), [one.mask_scores for one in layers.values()])
    without = torch.autograd.grad(model(**ctx.rows[0]).loss, [one.mask_scores for one in layers.values()])
    matrices = sum(one.rows.parts for one in layers.values())
    assert matrices == 2 * 6
    for one, a, b in zip(layers.values(), with_penalty, without, strict=True):
        slope = 8.0 * 0.25 * one.rows.parts / one.mask_scores.numel() / matrices
        assert torch.allclose(a - b, torch.full_like(a, slope), rtol=1e-3)


def test_soft_mask_is_the_threshold_but_never_below_half_a_percent() -> None:
    one = SoftLinear(nn.Linear(60, 50), Level(0.3), Rows(), 0.0)
    with torch.no_grad():
        one.mask_scores.copy_(filled((50, 60), 4))
        assert torch.equal(one.mask(), one.mask_scores.sigmoid() > 0.3)
        one.mask_scores.sub_(30.0)
        assert one.mask().sum() == int(0.005 * 3000) + 1 == 16
        assert one.mask_scores[one.mask()].min() >= one.mask_scores[~one.mask()].max()
        one.mask_scores.fill_(-30.0)
        assert one.mask().sum() == 16
        one.mask_scores[0, 0] = torch.nan
    with pytest.raises(Diverged):
        one.mask()


def test_a_larger_penalty_prunes_more() -> None:
    kept = []
    for penalty in (0.0, 400.0):
        method = movement(variant="soft", penalty=penalty, score_lr=0.5, warmup=0.0, threshold=0.4)
        model, ctx = prepared(method, "tiny_bert", steps=6)
        method.fit(model, ctx)
        kept.append(1 - method.measure(model, ctx)["sparsity"])
    assert kept[1] < 0.1 < kept[0]


def test_two_learning_rates_and_no_decay_of_scores() -> None:
    model, ctx = prepared(movement(score_lr=0.3, score_init=2.0), "tiny_bert")
    ids = {id(one.mask_scores) for one in wrapped(model).values()}
    assert all(torch.equal(one.mask_scores, torch.full((one.out_features, one.in_features), 2.0)) for one in wrapped(model).values())
    heads = {id(p) for n, p in model.named_parameters() if n in head_names(model)}
    for group in ctx.method.groups(model, ctx.settings):
        for p in group["params"]:
            assert group["lr"] == (0.3 if id(p) in ids else ctx.settings.head_lr if id(p) in heads else ctx.settings.lr)
            assert id(p) not in ids or group["weight_decay"] == 0


def test_trains_weights_and_as_many_scores_on_a_real_architecture() -> None:
    """BERT-base: 85 M scores beside all weights but the embeddings."""
    method = movement()
    model = method.prepare(build("bert_base", device="meta"), FakeContext(method, []))
    sizes = trainable(model)
    assert sum(size for name, size in sizes.items() if name.endswith("mask_scores")) == 84_934_656
    tables = sum(p.numel() for module in embeddings(model).values() for p in module.parameters())
    stock = sum(p.numel() for p in build("bert_base", device="meta").parameters())
    assert sum(sizes.values()) == stock - tables + 84_934_656


def test_resume_position_of_the_schedule() -> None:
    method = movement()
    model, ctx = prepared(method, "tiny_bert")
    method.fit(model, ctx)
    other = movement()
    again, _ = prepared(other, "tiny_bert")
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert other.level.value == method.level.value == 0.5
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "l0"}, "method.variant=l0 is not allowed; allowed: hard, soft"),
        ({"sparsity": 1.0}, r"method.sparsity=1.0 is out of range; allowed: a number in \[0, 1\)"),
        ({"initial_sparsity": 0.7}, r"method.initial_sparsity=0.7 is out of range; allowed: a number in \[0, 0.5\]"),
        ({"threshold": 0.0}, r"method.threshold=0.0 is out of range; allowed: a number in \(0, 1\)"),
        ({"final_warmup": -1.0}, "method.final_warmup=-1.0 is out of range"),
        ({"score_lr": 0.0}, "method.score_lr=0.0 is out of range"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        movement(**changes)
