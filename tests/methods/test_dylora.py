"""DyLoRA: one rank a step for the whole model, PEFT's LoRA at every rank, whose entries get gradients and move, and a model per rank."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn

from harness.seeding import generator
from methods.adapters.dylora import DyLora, DyLoraLinear
from methods.adapters.own_base import wrapped
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

R, ALPHA = 4, 6.0


def dylora(**changes: object) -> DyLora:
    values = {"r": R, "alpha": ALPHA, "dropout": 0.0, "frozen": False, "strict": False, "weights": None, "targets": ["q", "v"]}
    return DyLora(DyLora.Config(**(values | changes)))


class Seeded(FakeContext):
    """Generators by the name itself, as the harness gives them: ranks are drawn under names of equal length."""

    def generator(self, name: str) -> torch.Generator:
        return generator(self.seed, "method", name)


def prepared(method: DyLora, model: nn.Module, seed: int = 0, steps: int = 3) -> tuple[nn.Module, Seeded]:
    ctx = Seeded(method, batches(steps), seed=seed)
    return method.prepare(model, ctx), ctx


def layers(model: nn.Module) -> list[DyLoraLinear]:
    return list(wrapped(model).values())


def shake(model: nn.Module) -> None:
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in layers(model):
            for p in (layer.A, layer.B):
                p.add_(0.2 * torch.randn(p.shape, generator=draws))


def at_rank(model: nn.Module, rank: int) -> Tensor:
    for layer in layers(model):
        layer.rank = rank
    return logits(model)


def peft_lora(stock: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], rank: int) -> nn.Module:
    """PEFT's LoRA of a rank with the first rows of A and columns of B."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=list(factors), fan_in_fan_out=False)
        model = get_peft_model(stock, config)
    with torch.no_grad():
        for name, (a, b) in factors.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.copy_(a[:rank])
            layer.lora_B["default"].weight.copy_(b[:, :rank])
    return model


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_exact_at_initialisation_at_every_rank(name: str) -> None:
    stock = build(name)
    start = logits(stock)
    model, _ = prepared(dylora(), stock)
    assert all(torch.equal(at_rank(model, rank), start) for rank in range(1, R + 1))


@pytest.mark.parametrize("rank", range(1, R + 1))
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_every_rank_is_pefts_lora_of_that_rank_and_alpha(name: str, rank: int) -> None:
    model, _ = prepared(dylora(), build(name))
    shake(model)
    factors = {key: (layer.A.detach(), layer.B.detach()) for key, layer in wrapped(model).items()}
    expected = logits(peft_lora(build(name), factors, rank))
    assert (expected - logits(build(name))).abs().max() > 1e-3
    assert torch.allclose(at_rank(model, rank), expected, atol=1e-6)


def test_full_rank_gradients_are_plain_loras() -> None:
    model, _ = prepared(dylora(), build("tiny_bert"))
    shake(model)
    factors = {key: (layer.A.detach().clone(), layer.B.detach().clone()) for key, layer in wrapped(model).items()}
    reference = peft_lora(build("tiny_bert"), factors, R).eval()
    model.eval()
    (1e3 * model(**batches(1)[0]).loss).backward()
    (1e3 * reference(**batches(1)[0]).loss).backward()
    for key, layer in wrapped(model).items():
        other = reference.base_model.model.get_submodule(key)
        for own, peft in ((layer.A, other.lora_A["default"].weight), (layer.B, other.lora_B["default"].weight)):
            assert own.grad.abs().max() > 1e-3
            assert (own.grad - peft.grad).abs().max() < 1e-3 * own.grad.abs().max()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_gradients_stay_within_the_rank(frozen: bool, rank: int) -> None:
    """Those that there are equal the gradients of the same product without detaching."""
    model, _ = prepared(dylora(frozen=frozen), build("tiny_bert"))
    shake(model)
    layer = layers(model)[0]
    layer.begin(rank, strict=False)
    x, g = torch.randn(5, layer.in_features), torch.randn(5, layer.out_features)
    (layer(x) * g).sum().backward()
    a, b = layer.A.detach(), layer.B.detach()
    want_a = torch.zeros_like(a)
    want_b = torch.zeros_like(b)
    first = rank - 1 if frozen else 0
    want_a[first:rank] = ALPHA / rank * (b.T @ g.T @ x)[first:rank]
    want_b[:, first:rank] = ALPHA / rank * (g.T @ x @ a.T)[:, first:rank]
    assert torch.allclose(layer.A.grad, want_a, atol=1e-4) and torch.allclose(layer.B.grad, want_b, atol=1e-4)
    assert layer.A.grad[first:rank].abs().min() > 0 and layer.A.grad[rank:].abs().sum() == 0


def moved(model: nn.Module, before: dict[str, Tensor]) -> list[tuple[set[int], set[int]]]:
    """Per layer the rows of A and the columns of B that differ."""
    found = []
    for key, layer in wrapped(model).items():
        rows = (layer.A.detach() != before[f"{key}.A"]).any(1)
        columns = (layer.B.detach() != before[f"{key}.B"]).any(0)
        found.append((set(rows.nonzero().flatten().tolist()), set(columns.nonzero().flatten().tolist())))
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_what_an_update_moves(frozen: bool, strict: bool) -> None:
    """With momentum and decay everything moves, as in the official code; a strict step moves what has a gradient."""
    method = dylora(frozen=frozen, strict=strict)
    model, ctx = prepared(method, build("tiny_bert"))
    shake(model)
    optimizer = method.optimizer(model, ctx.settings)
    for rank in (R, 2):
        before = snapshot(model)
        method.sample = lambda step, ctx, rank=rank: rank
        method.on_step(model, 0, ctx)
        optimizer.zero_grad()
        method.loss(model, batches(1)[0], ctx).backward()
        optimizer.step()
        method.on_update(model, 1, ctx)
        assert {layer.rank for layer in layers(model)} == {R}
    everything, active = set(range(R)), {1} if frozen else {0, 1}
    expected = active if strict else everything
    assert moved(model, before) == [(expected, expected)] * len(layers(model))


def test_one_rank_a_step_for_all_layers_and_for_all_its_micro_batches() -> None:
    method = dylora()
    model, ctx = prepared(method, build("tiny_bert"), steps=6)
    seen: list[set[int]] = []
    loss = method.loss

    def twice(model: nn.Module, batch: dict[str, Tensor], ctx: object) -> Tensor:
        seen.append({layer.rank for layer in layers(model)})
        first = loss(model, batch, ctx)
        seen.append({layer.rank for layer in layers(model)})
        return first + loss(model, batch, ctx)

    method.loss = twice
    before = snapshot(model)
    method.fit(model, ctx)
    assert seen == [{method.sample(step, ctx)} for step in range(6) for _ in range(2)] and len(set(map(tuple, seen))) > 1
    assert changed(model, before) == set(trainable(model))


def test_ranks_are_uniform_and_depend_on_seed_and_step_alone() -> None:
    method = dylora(r=8)
    ctx, other = Seeded(method, []), Seeded(method, [], seed=1)
    ranks = [method.sample(step, ctx) for step in range(10_000)]
    assert stats.chisquare([ranks.count(rank) for rank in range(1, 9)]).pvalue > 1e-3
    assert [method.sample(step, ctx) for step in reversed(range(50))] == ranks[:50][::-1]
    assert [method.sample(step, other) for step in range(50)] != ranks[:50]


def test_ranks_follow_given_weights() -> None:
    method = dylora(weights=[0.0, 3.0, 1.0, 0.0])
    ctx = Seeded(method, [])
    ranks = [method.sample(step, ctx) for step in range(2000)]
    assert set(ranks) == {2, 3} and ranks.count(2) / 2000 == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"])
def test_one_stock_model_for_every_rank(name: str, frozen: bool) -> None:
    stock = build(name)
    kind, keys = type(stock), list(stock.state_dict())
    model, ctx = prepared(dylora(frozen=frozen), stock)
    model = ctx.method.fit(model, ctx)
    shake(model)
    expected = [at_rank(model, rank) for rank in range(1, R + 1)]
    at_rank(model, R)
    factors = ctx.method.lora(model)
    final = ctx.method.finalize(model, ctx)
    main = snapshot(final)
    seen: dict[str, Tensor] = {}
    for variant, candidate in ctx.method.variants(final, ctx):
        assert type(candidate) is kind and list(candidate.state_dict()) == keys
        assert all(p.requires_grad for p in candidate.parameters())
        seen[variant] = logits(candidate)
    assert list(seen) == ["main", "rank1", "rank2", "rank3"]
    apart = min((one - two).abs().max() for i, one in enumerate(expected) for two in expected[:i])
    for got, want in zip([*list(seen.values())[1:], seen["main"]], expected, strict=True):
        assert (got - want).abs().max() < min(1e-5, 0.01 * apart)
    assert not changed(final, main)
    assert {up.shape[1] for up, _ in factors.values()} == {R}


def test_the_main_model_is_back_when_the_variants_are_not_all_asked_for() -> None:
    model, ctx = prepared(dylora(), build("tiny_bert"))
    shake(model)
    final = ctx.method.finalize(model, ctx)
    main = snapshot(final)
    asked = ctx.method.variants(final, ctx)
    next(asked), next(asked)
    assert changed(final, main)
    asked.close()
    assert not changed(final, main)


def test_half_precision_variants_round_the_base_plus_delta_once() -> None:
    model, ctx = prepared(dylora(), build("tiny_llama").bfloat16())
    shake(model)
    key, layer = next(iter(wrapped(model).items()))
    base = layer.base_layer.weight.detach().clone()
    final = ctx.method.finalize(model, ctx)
    for variant, candidate in ctx.method.variants(final, ctx):
        rank = R if variant == "main" else int(variant.removeprefix("rank"))
        delta = ALPHA / rank * layer.B[:, :rank] @ layer.A[:rank]
        weight = candidate.get_submodule(key).weight
        assert weight.dtype == torch.bfloat16 and (weight.float() - (base.float() + delta)).abs().max() <= 2**-8 * weight.abs().max()
        assert (weight != (base.float() + delta).bfloat16()).float().mean() < 0.01


@pytest.mark.parametrize("frozen", [False, True])
def test_low_ranks_beat_a_truncated_lora(frozen: bool) -> None:
    """Regression on a change of full rank: LoRA of rank R cut to rank 1 against DyLoRA at rank 1, after equally many steps."""
    torch.manual_seed(0)
    target = (
        torch.linalg.qr(torch.randn(12, R)).Q @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5])) @ torch.linalg.qr(torch.randn(10, R)).Q.T
    )
    errors = {}
    for name in ("lora", "dylora"):
        layer = DyLoraLinear(
            nn.Linear(10, 12, bias=False), dylora(frozen=frozen and name == "dylora").config, torch.Generator().manual_seed(0)
        )
        weight = layer.base_layer.weight
        optimizer = torch.optim.Adam([layer.A, layer.B], lr=5e-2)
        draws = torch.Generator().manual_seed(1)
        for _ in range(500):
            layer.rank = R if name == "lora" else int(torch.randint(1, R + 1, (1,), generator=draws))
            optimizer.zero_grad()
            delta = layer(torch.eye(10)).T - weight
            (delta - target).square().sum().backward()
            optimizer.step()
        layer.rank = 1
        errors[name] = (layer(torch.eye(10)).T - weight - target).square().sum().item()
    best = target.square().sum().item() - 16.0
    assert errors["dylora"] < 0.5 * errors["lora"] and errors["dylora"] > 0.99 * best


@pytest.mark.parametrize(("name", "r", "count"), [("roberta_base", 8, 294_912), ("gpt2_medium", 4, 4 * 24 * (1024 + 3072))])
def test_published_counts(name: str, r: int, count: int) -> None:
    model, _ = prepared(dylora(r=r), build(name, device="meta"))
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 0}, "method.r=0 is out of range"),
        ({"weights": [1.0]}, r"method.weights=\[1.0\] is not allowed; allowed: null, or 4 numbers"),
        ({"weights": [0.0] * 4}, "not all 0"),
        ({"weights": [-1.0, 1.0, 1.0, 1.0]}, "method.weights=-1.0 is out of range"),
        ({"targets": []}, "targets nothing"),
    ],
)
def test_bad_configurations(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dylora(**change)
