"""SquareHead: the loss against hand computation and its invariants, the teacher that it keeps, zeros that stay."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.maths.distillation import EPSILON, softened_kl, squarehead
from methods.prune.squarehead import Squarehead, predictions
from methods.roles import prunable_parameters
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, logits, snapshot

BASE = {
    "sparsity": 0.5, "pattern": "unstructured", "criterion": "magnitude", "teacher": 0.5, "ce": 1.0, "kl": 0.0, "square": 1.0,
    "temperature": 2.0,
}  # fmt: skip


def prepared(name: str = "tiny_bert", **changes: Any) -> tuple[Squarehead, nn.Module, FakeContext]:
    m = Squarehead(Squarehead.Config(**BASE | changes))
    ctx = FakeContext(m, batches(4))
    return m, m.prepare(build(name), ctx), ctx


def states(seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(3, 5, 8, generator=draws) * (layer + 1) for layer in range(4)]


MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def test_equals_a_computation_by_hand_with_padding() -> None:
    student, teacher = states(0), states(1)
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        rows = [(i, j) for i in range(3) for j in range(5) if MASK[i, j]]
        s, t = (np.concatenate([x[i, j].numpy() for i, j in rows]).astype(np.float64) for x in (s, t))
        expected += ((s - t) ** 2).mean() / ((t**2).mean() + EPSILON)
    assert squarehead(student, teacher, MASK).item() == pytest.approx(expected, rel=1e-5)
    changed = [s.clone() for s in student]
    changed[0][0, 4] += 100  # a padding token
    assert torch.equal(squarehead(changed, teacher, MASK), squarehead(student, teacher, MASK))


def test_invariants() -> None:
    teacher = states(1)
    assert squarehead(teacher, teacher, MASK).item() == 0
    assert squarehead([0 * t for t in teacher], teacher, MASK).item() == pytest.approx(4, rel=0.02)  # a layer adds about 1
    big, bigger = (squarehead([c * s for s in states(0)], [c * t for t in teacher], MASK).item() for c in (10, 1000))
    assert big == pytest.approx(bigger, rel=1e-3)


def test_kl_is_that_of_softened_distributions() -> None:
    s, t = (torch.randn(6, 9, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    p, q = (torch.softmax(x.double() / 2, -1) for x in (t, s))
    assert softened_kl(s, t, 2.0).item() == pytest.approx(4 * (p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)
    assert softened_kl(t, t, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_kl_takes_the_logits_that_predict_labels() -> None:
    scores = torch.arange(2 * 4 * 3).view(2, 4, 3).float()
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 5, -100, -100]])
    student, _ = predictions(scores, scores, labels)
    assert torch.equal(student, torch.stack([scores[0, 1], scores[0, 2], scores[1, 0]]))
    whole, _ = predictions(scores[0], scores[0], labels[0])
    assert torch.equal(whole, scores[0])
    with pytest.raises(UserError, match=r"give method\.kl=0"):
        predictions(scores[..., :1], scores[..., :1], labels)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_the_student_starts_as_the_pruned_teacher_and_zeros_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, model, ctx = prepared(name)
    starts = {}
    train = ctx.train

    def watched(model: nn.Module, phase: str = "main", **settings: Any) -> nn.Module:
        starts[phase] = snapshot(model)
        return train(model, phase, **settings)

    monkeypatch.setattr(ctx, "train", watched)
    model = m.fit(model, ctx)
    assert ctx.phases == ["teacher", "main"]
    assert m.teacher is not None and not any(p.requires_grad for p in m.teacher.parameters())
    taught = snapshot(m.teacher)
    for key, weight in prunable_parameters(model).items():
        kept = starts["main"][key] != 0
        assert int(kept.sum()) * 2 == kept.numel() and torch.equal(starts["main"][key][kept], taught[key][kept])
        assert torch.equal(weight != 0, kept)
        assert not torch.equal(taught[key], starts["teacher"][key])
    fitted = logits(model)
    assert torch.equal(logits(m.finalize(model, ctx)), fitted)


def taught(**changes: Any) -> tuple[Squarehead, nn.Module, FakeContext]:
    """A student before its first step, beside its teacher."""
    m, model, ctx = prepared(teacher=0.0, **changes)
    ctx.rows = []
    for p in model.parameters():
        p.data.mul_(10 if p.ndim == 2 else 1)  # so that pruning changes the logits of a model of small random weights
    return m, m.fit(model, ctx), ctx


def test_loss_is_the_sum_of_its_parts() -> None:
    batch = batches(1)[0]
    parts = {}
    for name, weights in {"ce": (1, 0, 0), "kl": (0, 1, 0), "square": (0, 0, 1), "all": (0.5, 2, 3)}.items():
        m, model, ctx = taught(ce=weights[0], kl=weights[1], square=weights[2])
        parts[name] = m.loss(model.eval(), batch, ctx).item()
    assert parts["all"] == pytest.approx(0.5 * parts["ce"] + 2 * parts["kl"] + 3 * parts["square"], rel=1e-5)
    assert parts["ce"] > 0.1 and parts["kl"] > 1e-3 and parts["square"] > 0.01
    m, model, ctx = taught(sparsity=0.0, ce=0.0, kl=1.0)
    assert m.loss(model.eval(), batch, ctx).item() == pytest.approx(0, abs=1e-5)  # the student is its teacher


def test_distillation_brings_hidden_states_nearer_than_the_task_alone() -> None:
    distances = {}
    for square in (0.0, 1.0):
        m = Squarehead(Squarehead.Config(**BASE | {"teacher": 0.0, "square": square}))
        ctx = FakeContext(m, batches(1) * 12, lr=3e-3)
        model = m.fit(m.prepare(build("tiny_bert"), ctx), ctx).eval()
        batch = batches(1)[0]
        with torch.no_grad():
            both = [x(**batch, output_hidden_states=True).hidden_states[1:] for x in (model, m.teacher)]
        distances[square] = squarehead(*both, batch["attention_mask"]).item()
    assert distances[1.0] < 0.7 * distances[0.0]


def test_no_loss_is_refused() -> None:
    with pytest.raises(UserError, match="so there is no loss"):
        prepared(ce=0.0, kl=0.0, square=0.0)
