"""What calibration keeps: equal to the formulas on the whole text at once, however it is cut into sequences."""

import torch

from methods.maths.statistics import Gram, Moments, SquaredNorm, output_error


def sequences() -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(9, 5, generator=draws) + i for i in range(4)]


def test_norm_gram_and_error_are_those_of_all_tokens() -> None:
    norm, gram = SquaredNorm(5), Gram(5)
    for x in sequences():
        norm.add(x)
        gram.add(x)
    whole = torch.cat(sequences()).double()
    torch.testing.assert_close(norm.value.double(), whole.norm(dim=0) ** 2 / 4, rtol=1e-6, atol=0)
    torch.testing.assert_close(gram.value.double(), whole.T @ whole, rtol=1e-5, atol=1e-4)
    change = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    expected = (whole @ change.double().T).norm() ** 2
    assert abs(output_error(change, gram.value) / expected.item() - 1) < 1e-5


def test_variance_is_within_sequences_and_the_mean_a_sum_per_sequence() -> None:
    """Sequence i is shifted by i: a pooled variance also holds that of the shifts, 1.25 on average."""
    moments = Moments(5)
    for x in sequences():
        moments.add(x)
    stacked = torch.stack(sequences()).double()
    torch.testing.assert_close(moments.variance.double(), stacked.var(1, correction=0).mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.mean.double(), stacked.sum((0, 1)) / 4, rtol=1e-5, atol=1e-6)
    pooled = stacked.flatten(0, 1).var(0, correction=0)
    assert (pooled - moments.variance > 0.5).all()
