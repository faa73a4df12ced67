"""LoRA-SB: the first Adam step on rank r, optimal by Eckart and Young; the projected gradient; published counts; folding."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from harness import cell as spine
from harness.compose import compose
from harness.params import method_parameters
from methods.adapters.own_base import wrapped
from methods.adapters.wrapped import weight_and_bias
from methods.base import Batch
from methods.reparam.lora_sb import LoraSb
from methods.roles import head_names, role_names
from methods.spec import UserError
from tests.contract.toy import write_toy_data
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

SEVEN = ["q", "k", "v", "o", "gate", "up", "down"]
FOUR = ["q", "v", "o", "down"]
TARGETS = ["q", "v", "o"]
FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_neox", "tiny_llama", "tiny_mixtral"]


class Rows(FakeContext):
    """Keeps what was asked for; the batches are of unequal sizes."""

    asked: tuple[str, int | None] | None = None

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        self.asked = (split, n)
        first, second = self.rows[:2]
        yield first
        yield {key: value[:2] for key, value in second.items()}


def method(**changes: object) -> LoraSb:
    return LoraSb(LoraSb.Config(**({"r": 4, "samples": 6, "warmup": 0.5, "targets": TARGETS} | changes)))


def still(name: str) -> nn.Module:
    """A model without dropout, so that its gradients can be computed twice."""
    model = build(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if hasattr(model.config, "attention_probs_dropout_prob"):
        model.config.attention_probs_dropout_prob = 0.0
    return model


def prepared(model: nn.Module, **changes: object) -> tuple[nn.Module, Rows]:
    ctx = Rows(method(**changes), batches(4))
    return ctx.method.prepare(model, ctx), ctx


def dense_gradients(stock: nn.Module, names: list[str], over: list[Batch]) -> dict[str, Tensor]:
    """Sum over rows of dL/dW (out, in), by autograd on the stock model."""
    stock.requires_grad_(True).train()
    stock.zero_grad()
    sum(stock(**batch).loss * len(batch["labels"]) for batch in over).backward()
    grads = {name: stock.get_submodule(name).weight.grad.clone() for name in names}
    return {name: g.mT if type(stock.get_submodule(name)).__name__ == "Conv1D" else g for name, g in grads.items()}


@pytest.mark.parametrize(
    ("name", "r", "targets", "count"),
    [
        ("mistral_7b", 96, SEVEN, 2_064_384),
        ("llama3_8b", 96, SEVEN, 2_064_384),
        ("mistral_7b", 64, SEVEN, 917_504),
        ("mistral_7b", 32, SEVEN, 229_376),
        ("roberta_large", 24, FOUR, 55_296),
    ],
)
def test_published_counts(name: str, r: int, targets: list[str], count: int) -> None:
    model, ctx = prepared(build(name, classify=name == "roberta_large", device="meta"), r=r, targets=targets)
    heads = head_names(model)
    assert sum(size for key, size in trainable(model).items() if key not in heads) == count
    assert ctx.asked is None and ctx.phases == []


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_it_starts_with_the_best_approximation_of_the_first_adam_step(name: str) -> None:
    """D = -eta_0 sign(G) with eta_0 = lr / (warmup steps) = 1e-2 / 2; |B R A - D|^2 is the energy of D beyond r."""
    stock = still(name)
    names = role_names(stock, TARGETS)
    first, second = batches(4)[:2]
    dense = dense_gradients(stock, names, [first, {key: value[:2] for key, value in second.items()}])
    weights = {key: weight_and_bias(stock.get_submodule(key))[0].clone() for key in names}
    model, ctx = prepared(still(name))
    assert ctx.asked == ("train", 6) and ctx.phases == ["gradients"]
    for key, layer in wrapped(model).items():
        sure = dense[key].abs() > 1e-6 * dense[key].abs().max()
        step = -5e-3 * dense[key].sign()
        delta = (layer.B @ layer.R @ layer.A).detach()
        beyond = torch.linalg.svdvals(step)[4:].square().sum()
        assert sure.float().mean() > 0.99
        assert ((delta - step).square().sum() / beyond).item() == pytest.approx(1, abs=0.02)
        official = torch.svd_lowrank(step.T, q=4, niter=60)
        theirs = (official[0] * official[1] @ official[2].T).T
        assert ((theirs - step).square().sum() / beyond).item() == pytest.approx(1, abs=0.02)
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(layer(x) - layer.base_layer(x), x @ delta.T, atol=1e-5)
        assert torch.equal(weight_and_bias(layer.base_layer)[0], weights[key])


def test_exact_factors_of_a_given_step() -> None:
    """The products agree with the authors' randomised SVD where the singular values are apart."""
    draws = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(12, 6, generator=draws)).Q
    v = torch.linalg.qr(torch.randn(9, 6, generator=draws)).Q
    step = u * torch.tensor([8.0, 4, 2, 1, 0.1, 0.01]) @ v.T
    got = method().factors({"w": step})
    torch.manual_seed(42)
    left, values, right = torch.svd_lowrank(step.T, q=4, niter=10)
    assert torch.allclose(got["w.B"] @ got["w.R"] @ got["w.A"], (left * values @ right.T).T, atol=1e-4)
    assert torch.allclose(got["w.R"], torch.diag(torch.tensor([8.0, 4, 2, 1])), atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_bases_are_orthonormal_and_frozen(name: str) -> None:
    model, ctx = prepared(build(name))
    cores = {key for key in trainable(model) if key.endswith(".R")}
    assert set(trainable(model)) == cores | head_names(model) and len(cores) == len(wrapped(model))
    for layer in wrapped(model).values():
        assert torch.allclose(layer.B.T @ layer.B, torch.eye(4), atol=1e-5)
        assert torch.allclose(layer.A @ layer.A.T, torch.eye(4), atol=1e-5)
    optimized = {id(p) for group in ctx.method.optimizer(model, ctx.settings).param_groups for p in group["params"]}
    assert optimized == {id(p) for key, p in model.named_parameters() if key in cores | head_names(model)}
    before = snapshot(model)
    ctx.method.fit(model, ctx)
    assert changed(model, before) == cores | head_names(model)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_gradient_of_the_core_moves_the_map_along_the_projected_gradient(name: str) -> None:
    """dL/dR = B^T g A^T with g of the folded stock model; B (dL/dR) A is the member of {B X A} nearest to g (least squares)."""
    model, ctx = prepared(still(name))
    layers, batch = wrapped(model), batches(1, seed=5)[0]
    model.train()
    model(**batch).loss.backward()
    found = {key: (layer.R.grad.clone(), layer.B.clone(), layer.A.clone()) for key, layer in layers.items()}
    dense = dense_gradients(ctx.method.finalize(model, ctx), list(found), [batch])
    for key, (gradient, up, down) in found.items():
        g = dense[key] / len(batch["labels"])
        scale = g.abs().max().item()
        assert torch.allclose(gradient, up.T @ g @ down.T, atol=1e-4 * scale)
        atoms = torch.einsum("ip,qj->ijpq", up, down).flatten(0, 1).flatten(1)
        nearest = torch.linalg.lstsq(atoms, g.flatten()[:, None]).solution.view(4, 4)
        assert torch.allclose(gradient, nearest, atol=1e-4 * scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_keeps_the_logits_in_a_stock_model(name: str) -> None:
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(stock)
    expected = logits(model)
    final = ctx.method.finalize(model, ctx)
    assert (expected - start).abs().max() > 1e-4
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.allclose(logits(final), expected, atol=1e-5 * expected.abs().max().item())


def test_without_warmup_the_step_is_that_of_the_full_learning_rate() -> None:
    steps = {}
    for warmup in (0.0, 0.5):
        model, _ = prepared(still("tiny_bert"), warmup=warmup)
        steps[warmup] = {key: layer.R.detach() for key, layer in wrapped(model).items()}
    assert all(torch.allclose(steps[0.0][key], 2 * steps[0.5][key]) for key in steps[0.5])


def test_rank_is_cut_to_the_smaller_side() -> None:
    model, _ = prepared(build("tiny_llama"), r=24, targets=["q", "k"])
    assert {tuple(layer.R.shape) for layer in wrapped(model).values()} == {(24, 24), (16, 16)}


def test_a_resumed_cell_reads_its_bases_and_parameters_are_counted_without_data(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = [f"data_dir={write_toy_data(tmp_path / 'toy')}", f"run.store={tmp_path}", "run.device=cpu", "run.eval_batch=8"]
    small = ["method.samples=12", "method.r=4", "budget.examples=32", "budget=smoke", "precision=float32"]
    container = compose(["method=lora_sb", "model=tiny_bert", "task=glue/sst2", *where, *small])
    first = spine.set_up(container)
    before = snapshot(first.method.prepare(first.model, first.ctx))
    again = spine.set_up(container)
    monkeypatch.setattr(again.method, "first_step", lambda *_: pytest.fail("computed twice"))
    model = again.method.prepare(again.model, again.ctx)
    assert changed(model, before) == set()
    counted = [[(p.name, p.steps, p.examples, p.tokens) for p in bench.ctx.phases] for bench in (first, again)]
    assert counted[0] == counted[1] and counted[0][0][:3] == ("gradients", 0, 12)
    assert method_parameters(first.cell, first.task.head)["trainable_method"] == 16 * 2 * 4


def test_traits_and_configuration() -> None:
    assert method().config.adjust(LoraSb.traits).moe and not method(targets=FOUR).config.adjust(LoraSb.traits).moe
    with pytest.raises(UserError, match=r"method.samples=0 is out of range"):
        method(samples=0)
