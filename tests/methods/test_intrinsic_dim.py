"""Training in a random subspace: what moves and how far, gradients, ties, counts, folding, and the search for d90."""

import zlib

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from analysis.d90 import smallest
from methods.maths.fastfood import Fastfood
from methods.reparam.intrinsic_dim import IntrinsicDim, with_unit_columns
from methods.roles import head_names, layers
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, inputs, logits, trainable

KINDS = [("fastfood", False), ("fastfood", True), ("dense", False), ("dense", True)]


def method(d: int = 20, projection: str = "fastfood", said: bool = False) -> IntrinsicDim:
    return IntrinsicDim(IntrinsicDim.Config(d=d, projection=projection, said=said))


def generator(name: str) -> torch.Generator:
    """Other draws for every name."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def prepared(name: str = "tiny_bert", steps: int = 3, lr: float = 1e-2, classify: bool = True, **changes: object) -> tuple:
    own = method(**changes)
    ctx = FakeContext(own, batches(steps), lr=lr)
    ctx.generator = generator
    return own, own.prepare(build(name, classify=classify), ctx), ctx


def shake(model: nn.Module) -> None:
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.subspace.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draws))


def theta(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of the backbone as they are now, by their stock names."""
    names = {n.replace("parametrizations.", "").removesuffix(".original") for n, _ in model.named_parameters() if n.endswith(".original")}
    return {n: getattr(model.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2]).detach().clone() for n in names}


@pytest.mark.parametrize(("projection", "said"), KINDS)
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_exact_at_initialisation_and_folds(name: str, projection: str, said: bool) -> None:
    stock = build(name)
    start, keys, kind = logits(stock), list(stock.state_dict()), type(stock)
    own, model, ctx = prepared(name, projection=projection, said=said)
    assert torch.equal(logits(model), start)
    shake(model)
    moved = logits(model)
    assert not torch.allclose(moved, start, atol=1e-4)
    final = own.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert not any("Parametrized" in type(module).__name__ for module in final.modules())
    assert torch.equal(logits(final), moved)


@pytest.mark.parametrize(("said", "projection"), [(False, "fastfood"), (True, "dense")])
def test_d_parameters_and_the_head_train_and_all_else_is_frozen(said: bool, projection: str) -> None:
    own, model, ctx = prepared(said=said, projection=projection)
    heads = head_names(model)
    assert heads <= set(trainable(model))
    assert sum(size for name, size in trainable(model).items() if name not in heads) == 20
    backbone = {n for n, _ in build("tiny_bert").named_parameters()} - heads
    before, frozen = theta(model), {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert set(before) == backbone
    ctx.train(model)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if not p.requires_grad)
    after = theta(model)
    assert all(not torch.equal(after[name], before[name]) for name in backbone)
    measures = own.measure(model, ctx)
    assert measures["norm"] > 0 and (measures["scales"] is not None) == said
    if said:
        assert len(measures["scales"]) == len(layers(model)) + 1 and 1.0 not in measures["scales"]


def test_counts_of_a_real_architecture() -> None:
    own = method(d=20_000, said=True)
    model = own.prepare(build("roberta_base", device="meta"), FakeContext(own, []))
    assert sum(size for name, size in trainable(model).items() if name not in head_names(model)) == 20_000
    assert sum(trainable(model)[name] for name in head_names(model)) == 592_130


def test_said_is_the_same_projection_with_a_scale_per_block() -> None:
    _, model, _ = prepared(said=True, d=20)
    before = theta(model)
    with torch.no_grad():
        model.subspace.v.copy_(torch.randn(17, generator=torch.Generator().manual_seed(0)))
    plain = {name: now - before[name] for name, now in theta(model).items()}
    with torch.no_grad():
        model.subspace.scales.copy_(torch.tensor([2.0, 3.0, 5.0]))
    for name, now in theta(model).items():
        factor = next((s for part, s in (("layer.0.", 3.0), ("layer.1.", 5.0)) if part in name), 2.0)
        assert torch.allclose(now - before[name], factor * plain[name], atol=1e-6)


def test_dense_columns_are_nearly_orthonormal_over_the_whole_backbone() -> None:
    own, model, _ = prepared(projection="dense", d=10)
    parts = [module.projection.args[0] for module in model.modules() if hasattr(module, "projection")]
    p = torch.cat(parts)
    assert len(p) == sum(t.numel() for t in theta(model).values())
    assert torch.allclose(p.norm(dim=0), torch.ones(10), atol=1e-4)
    assert torch.allclose(p.T @ p, torch.eye(10), atol=5 / len(p) ** 0.5)
    before = theta(model)
    shake(model)
    distance = sum((now - before[name]).square().sum() for name, now in theta(model).items()) ** 0.5
    assert distance.item() == pytest.approx(own.measure(model, None)["norm"], rel=0.05)


def test_fastfood_moves_every_tensor_by_about_the_length_of_v() -> None:
    _, model, _ = prepared(d=50)
    before = theta(model)
    shake(model)
    ratios = torch.stack([(now - before[name]).norm() for name, now in theta(model).items()]) / model.subspace.v.norm()
    assert ratios.square().mean().item() == pytest.approx(1.0, rel=0.15)
    others = {tuple((now - before[name]).flatten()[:3].tolist()) for name, now in theta(model).items()}
    assert len(others) == len(before)


def test_the_gradient_of_v_is_that_of_theta_projected() -> None:
    """dL/dv = P^T dL/dtheta in float64, with dL/dtheta from the stock model and P from its columns."""
    own, model = method(projection="dense", d=6), build("tiny_bert").double()
    ctx = FakeContext(own, [])
    ctx.generator = generator
    torch.set_default_dtype(torch.float64)
    try:
        own.prepare(model, ctx)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {n: m.projection for n, m in model.named_modules() if hasattr(m, "projection")}
    stock = build("tiny_bert").double()
    batch = batches(1)[0]
    stock(**batch).loss.backward()
    model(**batch).loss.backward()
    expected = 0.0
    for name, projection in parts.items():
        slope = stock.get_parameter(name.replace("parametrizations.", "").removesuffix(".0")).grad
        columns = torch.stack([projection(e) for e in torch.eye(6, dtype=torch.float64)], dim=1)
        expected = expected + columns.T @ (torch.zeros(len(columns), dtype=torch.float64) if slope is None else slope.flatten())
    assert torch.allclose(model.subspace.v.grad, expected, rtol=1e-6)


def smallest_bert() -> nn.Module:
    """A classifier of a few hundred parameters."""
    sizes = {"vocab_size": 10, "hidden_size": 4, "intermediate_size": 4, "max_position_embeddings": 8, "hidden_act": "tanh"}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(num_hidden_layers=1, num_attention_heads=1, initializer_range=0.5, **sizes)).eval()


def test_an_orthogonal_p_of_full_size_takes_the_full_gradient_step() -> None:
    """d = D: theta0 + P (-0.1 dL/dv) is theta0 - 0.1 dL/dtheta, with dL/dtheta from full fine-tuning."""
    stock, batch = smallest_bert(), {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
    stock(**batch).loss.backward()
    size = sum(p.numel() for name, p in stock.named_parameters() if name not in head_names(stock))
    own = method(projection="dense", d=size)
    ctx = FakeContext(own, [])
    model = own.prepare(smallest_bert(), ctx)
    parts = [m.projection.args[0] for m in model.modules() if hasattr(m, "projection")]
    orthogonal = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0))).Q
    for part, rows in zip(parts, orthogonal.split([len(part) for part in parts]), strict=True):
        part.copy_(rows)
    model(**batch).loss.backward()
    with torch.no_grad():
        model.subspace.v.sub_(0.1 * model.subspace.v.grad)
    moved = 0.0
    for name, p in own.finalize(model, ctx).named_parameters():
        full = stock.get_parameter(name)
        if name not in head_names(stock):
            step = torch.zeros_like(full) if full.grad is None else -0.1 * full.grad
            assert torch.allclose(p, full + step, atol=1e-6), name
            moved += step.norm().item()
    assert moved > 1e-2


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_gemma"])
def test_tied_tensors_move_as_one_and_stay_tied(name: str) -> None:
    own, model, ctx = prepared(name, classify=False)
    if model.get_input_embeddings().parametrizations.weight.original is not model.get_output_embeddings().parametrizations.weight.original:
        pytest.fail("the architecture is meant to tie its embeddings")
    shake(model)
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    expected = logits(model)
    final = own.finalize(model, ctx)
    assert final.get_input_embeddings().weight is final.get_output_embeddings().weight
    assert torch.equal(logits(final), expected)


def test_each_tensor_is_projected_once_in_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = prepared("tiny_mixtral")
    calls: list[int] = []
    project = Fastfood.__call__
    monkeypatch.setattr(Fastfood, "__call__", lambda self, v: calls.append(id(self)) or project(self, v))
    logits(model)
    assert len(calls) == len(set(calls)) > 0


def test_half_precision_is_rounded_once_after_the_sum() -> None:
    own = method()
    ctx = FakeContext(own, [])
    model = own.prepare(build("tiny_bert").bfloat16(), ctx)
    shake(model)
    module = model.bert.encoder.layer[0].output.dense
    change = module.parametrizations.weight[0].projection(model.subspace.v).view_as(module.weight)
    assert torch.equal(module.weight, (module.parametrizations.weight.original.float() + change).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        inside = module.weight
    assert torch.equal(inside, module.weight) and logits(model, inputs()).dtype == torch.bfloat16


def solve(d: int, size: int = 1000, blocks: int = 10) -> float:
    """Score of the best point of a random d-dimensional subspace: 10 sums of 100 entries each are to be 1; 1 = solved."""
    projection = with_unit_columns({"theta": torch.randn(size, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d))})[
        "theta"
    ]
    sums = projection.view(blocks, -1, d).sum(1)
    target = torch.ones(blocks, 1, dtype=torch.float64)
    left = sums @ torch.linalg.lstsq(sums, target).solution - target
    return 1 - (left.square().sum() / blocks).item()


def test_the_search_finds_a_planted_dimension() -> None:
    """10 constraints on 1000 entries: 10 free parameters meet them, 9 do not."""
    assert solve(10) == pytest.approx(1.0, abs=1e-9) and solve(9) < 1 - 1e-4
    scores = {d: float(solve(d) > 1 - 1e-9) for d in (2, 5, 9, 10, 11, 20)}
    assert smallest(scores, full=1.0) == 10
    assert smallest({5: 0.4, 7: 0.9, 9: 0.8}, full=1.0) == 7
    assert smallest({5: 0.4}, full=1.0) is None


def test_a_larger_subspace_fits_a_toy_task_better() -> None:
    """The loss on rows that are seen again and again, the head's share held still."""
    losses = []
    for d in (1, 30, 1000):
        _, model, ctx = prepared(d=d, lr=3e-2)
        ctx.rows = batches(1, rows=16) * 30
        for name in head_names(model):
            model.get_parameter(name).requires_grad_(False)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        ctx.train(model)
        losses.append(model(**ctx.rows[0]).loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_too_few_parameters_for_the_scales_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.d=3"):
        prepared(d=3, said=True)
    for changes in ({"d": 0}, {"projection": "sparse"}):
        with pytest.raises(UserError):
            method(**changes)
