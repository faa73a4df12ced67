"""The probe is the optimum of its objective: against scikit-learn, the closed form, and the gradient of an independent formula."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from methods.baselines.linear_probe import LinearProbe, collect, solve
from methods.roles import output_layer
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot

L2 = 1e-2


def method(l2: float = L2) -> LinearProbe:
    return LinearProbe(LinearProbe.Config(l2=l2))


def data(n: int = 300, d: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Correlated features of unequal scale with noisy labels."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draws) @ torch.randn(d, d, generator=draws) + 2.0
    noisy = x[:, :classes] + 2 * torch.randn(n, classes, generator=draws)
    return x, noisy.argmax(-1)


def objective(w: Tensor, b: Tensor, x: Tensor, y: Tensor, l2: float) -> float:
    scores = x.double() @ w.T + b
    nll = torch.logsumexp(scores, -1) - scores[torch.arange(len(y)), y]
    return (nll.mean() + 0.5 * l2 * (w**2).sum()).item()


@pytest.mark.parametrize("classes", [2, 3])
def test_classification_equals_scikit_learn(classes: int) -> None:
    """Mean loss + l2/2 |W|^2 is scikit-learn's objective at C = 1 / (l2 N). It fits two classes with one vector, so compare differences."""
    x, y = data(classes=classes)
    head = nn.Linear(x.shape[1], classes)
    w, b = solve(head, x, y, L2).values
    l2 = L2 / 2 if classes == 2 else L2
    reference = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    if classes == 2:
        assert np.allclose((w[1] - w[0]).numpy(), reference.coef_[0], atol=1e-5)
        assert np.allclose((b[1] - b[0]).item(), reference.intercept_[0], atol=1e-4)
    else:
        assert np.allclose(w.numpy(), reference.coef_, atol=1e-5)
        shift = torch.from_numpy(reference.intercept_) - b
        assert torch.allclose(shift, shift.mean().expand(3), atol=1e-4)
        best = objective(torch.from_numpy(reference.coef_), torch.from_numpy(reference.intercept_), x, y, L2)
        assert objective(w, b, x, y, L2) == pytest.approx(best, abs=1e-10)


def test_regression_equals_the_closed_form() -> None:
    x, _ = data()
    y = (x[:, 0] - 0.5 * x[:, 3] + 3.0 + torch.randn(300, generator=torch.Generator().manual_seed(1))).float()
    w, b = solve(nn.Linear(12, 1), x, y, L2).values
    one = torch.cat([x.double(), torch.ones(300, 1, dtype=torch.float64)], 1)
    penalty = torch.diag(torch.tensor([L2] * 12 + [0.0], dtype=torch.float64))
    expected = torch.linalg.solve(2 / 300 * one.T @ one + penalty, 2 / 300 * one.T @ y.double())
    assert torch.allclose(torch.cat([w[0], b]), expected, atol=1e-6)


def test_solution_does_not_depend_on_the_initial_head_or_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    first, head = solve(nn.Linear(12, 3), x, y, L2).values, nn.Linear(12, 3)
    before = head.weight.detach().clone()
    assert all(torch.equal(p, q) for p, q in zip(first, solve(head, x, y, L2).values, strict=True))
    assert torch.equal(head.weight, before)
    monkeypatch.setattr("methods.baselines.linear_probe.CHUNK", 7)
    assert all(torch.allclose(p, q, atol=1e-7) for p, q in zip(first, solve(head, x, y, L2).values, strict=True))


def test_features_that_are_not_finite_give_no_number() -> None:
    x, y = data()
    x[5, 5] = torch.nan
    assert all(p.isnan().all() for p in solve(nn.Linear(12, 3), x, y, L2).values)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_deberta", "tiny_gpt2", "tiny_opt", "tiny_llama", "tiny_mixtral"])
def test_output_layer_on_the_features_gives_the_logits(name: str) -> None:
    """Padding, dropout and the pooled position are as in the model itself."""
    model = build(name, labels=3)
    rows = batches(3, labels=3)
    model.train()
    features, labels = collect(model, iter(rows))
    assert model.training and not output_layer(model)._forward_pre_hooks
    expected = torch.cat([logits(model, {k: v for k, v in row.items() if k != "labels"}) for row in rows])
    assert torch.allclose(output_layer(model)(features), expected, atol=1e-5)
    assert torch.equal(labels, torch.cat([row["labels"] for row in rows]))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_gpt2"])
@pytest.mark.parametrize("labels", [1, 2])
def test_fit_changes_only_the_output_layer_and_reaches_a_stationary_point(name: str, labels: int) -> None:
    method_ = method()
    rows = batches(6, rows=8, labels=labels)
    ctx = FakeContext(method_, rows)
    model = method_.prepare(build(name, labels=labels), ctx)
    own = {key for key, p in model.named_parameters() if id(p) in {id(q) for q in output_layer(model).parameters()}}
    assert {key for key, p in model.named_parameters() if p.requires_grad} == own
    before = snapshot(model)
    model = method_.finalize(method_.fit(model, ctx), ctx)
    assert ctx.phases == ["probe"]
    assert changed(model, before) == own
    measured = method_.measure(model, ctx)
    model.double().eval()
    loss = sum(model(**row).loss for row in rows) / len(rows)
    matrices = [p for p in output_layer(model).parameters() if p.ndim == 2]
    total = loss + 0.5 * L2 * sum(p.square().sum() for p in matrices)
    total.backward()
    assert total.item() == pytest.approx(measured["objective"], abs=1e-5)
    assert max(p.grad.abs().max() for p in output_layer(model).parameters()) < (1e-3 if name == "tiny_roberta" else 1e-4)
    assert measured["gradient"] <= (1e-3 if name == "tiny_roberta" else 1e-8)
    assert 0 < measured["iterations"] <= (300 if name == "tiny_roberta" else 3000)


def test_bert_keeps_its_pooler_and_roberta_fits_both_layers() -> None:
    bert = method().prepare(build("tiny_bert"), FakeContext(method(), []))
    assert {n for n, p in bert.named_parameters() if p.requires_grad} == {"classifier.weight", "classifier.bias"}
    roberta = method().prepare(build("tiny_roberta"), FakeContext(method(), []))
    trained = {n for n, p in roberta.named_parameters() if p.requires_grad}
    assert trained == {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}


def test_negative_penalty_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.l2=-1.0 is out of range"):
        method(-1.0)
