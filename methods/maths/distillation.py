"""What a student loses against its teacher, on hidden states and on logits. Pure."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

EPSILON = 2.0**-7
"""bfloat16's machine epsilon, in the denominator of SquareHead."""


def squarehead(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """sum_l MSE(h_l^S, h_l^T) / (MSE(h_l^T, 0) + eps) (Kurtic et al. 2023, arXiv 2310.06927, Eq. 2).

    Args:
        student, teacher: hidden states of each layer, (batch, tokens, d); in any precision, compared in float32.
        mask: attended tokens, (batch, tokens); means run over them and all d.
    """
    return torch.stack([_relative(s, t, mask.bool()) for s, t in zip(student, teacher, strict=True)]).sum()


def _relative(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    s, t = student[mask].float(), teacher[mask].float()
    return (s - t).square().mean() / (t.square().mean() + EPSILON)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over rows of logits (rows, classes)."""
    s, t = (log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    return temperature**2 * kl_div(s, t, reduction="batchmean", log_target=True)
