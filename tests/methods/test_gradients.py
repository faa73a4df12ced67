"""Summed gradients equal one backward pass over all rows, whatever the batches, and leave the model as it was."""

import pytest
import torch
from torch import Tensor, nn

from methods.maths.gradients import Batch, summed_gradients
from methods.spec import Diverged


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.unused, self.drop = nn.Linear(3, 2), nn.Linear(3, 2), nn.Dropout(0.5)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model.used(batch["input_ids"]) - batch["labels"]).square().sum(-1).mean()


def rows(start: int, stop: int) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randn(7, 3, generator=draws)[start:stop], "labels": torch.randn(7, 2, generator=draws)[start:stop]}


def test_a_sum_over_rows_that_does_not_depend_on_the_batches() -> None:
    model = Net()
    weights = {"a": model.used.weight, "b": model.unused.weight}
    split = summed_gradients(model, weights, [rows(0, 4), rows(4, 7)], loss)
    whole = torch.autograd.grad(7 * loss(model, rows(0, 7)), model.used.weight)[0]
    assert torch.allclose(split["a"], whole, atol=1e-5) and whole.abs().max() > 0.1
    assert torch.equal(split["b"], torch.zeros(2, 3))


def test_the_model_is_as_before_and_was_in_training_mode() -> None:
    model = Net().eval()
    model.used.bias.requires_grad_(False)
    seen: list[tuple[bool, bool, bool]] = []

    def spying(model: nn.Module, batch: Batch) -> Tensor:
        seen.append((model.drop.training, model.used.weight.requires_grad, model.unused.weight.requires_grad))
        return loss(model, batch)

    summed_gradients(model, {"a": model.used.weight}, [rows(0, 7)], spying)
    assert seen == [(True, True, False)]
    assert not model.training and not model.drop.training
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_half_precision_sums_in_float32() -> None:
    model = Net().bfloat16()
    batch = {key: value.bfloat16() for key, value in rows(0, 7).items()}
    assert summed_gradients(model, {"a": model.used.weight}, [batch], loss)["a"].dtype == torch.float32


def test_a_gradient_that_is_not_finite_ends_the_cell() -> None:
    model = Net()
    with pytest.raises(Diverged, match="the gradient of a is not finite"):
        summed_gradients(model, {"a": model.used.weight}, [rows(0, 7)], lambda m, batch: loss(m, batch) * float("nan"))
