"""SparseGPT's mathematics against least squares in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.maths.masks import layer_mask, nm_mask
from methods.maths.obs import inverse_factor, saliency, sparsegpt
from methods.maths.statistics import output_error
from methods.spec import Diverged


def correlated(tokens: int, width: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=draws) @ torch.randn(width, width, generator=draws) / width**0.5


def weights(out: int, width: int) -> Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(9))


def test_factor_is_the_upper_cholesky_factor_of_the_damped_inverse() -> None:
    x = correlated(50, 7).double().numpy()
    h = x.T @ x
    h += 0.01 * np.mean(np.diag(h)) * np.eye(7)
    factor = inverse_factor(torch.tensor(x.T @ x).float(), 0.01).double().numpy()
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(h), rtol=1e-3, atol=1e-6)
    assert np.allclose(factor, np.triu(factor)) and (np.diag(factor) > 0).all()


def stepwise(w: np.ndarray, mask: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Optimal brain surgery, by normal equations: when column i goes, the later ones are refitted to its part, the earlier ones fixed."""
    w = w.copy()
    for i in range(w.shape[1]):
        later = np.arange(i + 1, w.shape[1])
        gone = np.where(mask[:, i], 0, w[:, i])
        w[:, later] += np.outer(gone, np.linalg.solve(h[np.ix_(later, later)], h[later, i])) if len(later) else 0
        w[:, i] -= gone
    return w


@pytest.mark.parametrize("block", [3, 4, 12, 128])
@pytest.mark.parametrize("nm", [None, (1, 3)])
def test_survivors_are_the_column_by_column_optimum(block: int, nm: tuple[int, int] | None) -> None:
    if nm and block % nm[1]:
        with pytest.raises(ValueError, match="multiple"):
            sparsegpt(weights(5, 12), torch.eye(12), 2 / 3, nm, block, 0.01)
        return
    x, w = correlated(60, 12), weights(5, 12)
    gram = x.T @ x
    found, mask = sparsegpt(w, gram, 0.5 if nm is None else 2 / 3, nm, block, 0.01)
    h = gram.double().numpy()
    h += 0.01 * np.mean(np.diag(h)) * np.eye(12)
    np.testing.assert_allclose(found.numpy(), stepwise(w.double().numpy(), mask.numpy(), h), rtol=2e-3, atol=2e-4)
    assert torch.equal(found == 0, ~mask)


def test_one_row_whose_first_weights_go_is_the_least_squares_optimum() -> None:
    """Then nothing was fixed too early, so the survivors are the best of all vectors with that support."""
    x = correlated(80, 6)
    w = torch.tensor([[0.01, 0.02, 0.01, 3.0, -2.0, 1.5]])
    found, mask = sparsegpt(w, x.T @ x, 0.5, None, 128, 1e-7)
    assert mask.tolist() == [[False] * 3 + [True] * 3]
    target = (x @ w.T).double().numpy()
    best = np.linalg.lstsq(x[:, 3:].double().numpy(), target, rcond=None)[0]
    np.testing.assert_allclose(found[0, 3:].numpy(), best[:, 0], rtol=1e-4)


def test_white_inputs_give_magnitude_within_blocks_and_leave_survivors_alone() -> None:
    w = weights(6, 12)
    found, mask = sparsegpt(w, torch.eye(12), 0.5, None, 4, 0.01)
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        assert torch.equal(mask[:, part], layer_mask(w[:, part].abs(), 0.5))
        assert int((~mask[:, part]).sum()) == 12
    assert torch.equal(found, w * mask)


def test_groups_of_four_keep_two_and_a_dead_input_is_pruned_for_free() -> None:
    x = correlated(60, 8)
    x[:, 5] = 0
    w = weights(6, 8)
    found, mask = sparsegpt(w, x.T @ x, 0.5, (2, 4), 8, 0.01)
    assert (mask.unflatten(-1, (-1, 4)).sum(-1) == 2).all()
    assert (found[:, 5] == 0).all()


def test_reconstruction_beats_wanda_and_magnitude_at_equal_sparsity() -> None:
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(200, 8, generator=draws) @ torch.randn(8, 32, generator=draws) + 0.1 * torch.randn(200, 32, generator=draws)
    w = weights(24, 32)
    gram = x.T @ x
    found, _ = sparsegpt(w, gram, 0.5, None, 128, 0.01)
    wanda = w * layer_mask(w.abs() * gram.diagonal().sqrt(), 0.5)
    magnitude = w * layer_mask(w.abs(), 0.5)
    errors = [output_error(w - other, gram) for other in (found, wanda, magnitude)]
    assert errors[0] < 0.7 * min(errors[1:])


def test_saliency_is_the_error_that_one_pruned_weight_costs() -> None:
    """|X (w - w')|^2 after the last column goes and nothing is left to make up for it, and after the first goes and all the rest does."""
    x, w = correlated(90, 5, seed=2), weights(1, 5)
    gram = x.T @ x
    factor = inverse_factor(gram, 1e-7)
    cost = saliency(w, factor)[0]
    last = torch.tensor([[0, 0, 0, 0, 1.0]]) * w
    assert cost[4].item() == pytest.approx(output_error(last, gram), rel=1e-3)
    target = (x[:, :1] * w[0, 0]).double().numpy()
    left = x[:, 1:].double().numpy()
    residual = target - left @ np.linalg.lstsq(left, target, rcond=None)[0]
    assert cost[0].item() == pytest.approx(float((residual**2).sum()), rel=1e-3)


def test_a_matrix_that_is_not_positive_definite_is_named() -> None:
    with pytest.raises(Diverged, match=r"method\.damp"):
        inverse_factor(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 0.01)


def test_mask_of_a_group_is_chosen_from_weights_updated_so_far() -> None:
    """With strongly coupled inputs the second group's choice differs from that on the dense weights."""
    x = correlated(40, 8, seed=11)
    x[:, 4] = x[:, 0] + 0.01 * x[:, 4]
    w = weights(8, 8)
    w[:, 4] = 0.01
    w[:, 0] = 0.02
    gram = x.T @ x
    _, mask = sparsegpt(w, gram, 0.5, (2, 4), 8, 0.001)
    dense = nm_mask(saliency(w, inverse_factor(gram, 0.001)), 2, 4)
    assert torch.equal(mask[:, :4], dense[:, :4])
    assert not torch.equal(mask[:, 4:], dense[:, 4:])
