"""What calibration keeps of the inputs X (tokens, in) of a linear map, sequence by sequence, float32. Pure."""

import torch
from torch import Tensor


class SquaredNorm:
    """a_j = (1/n) sum_t X_tj^2 over all tokens of n sequences (Sun et al. 2023, arXiv 2306.11695); sqrt(a_j) scales Wanda's score."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.total = torch.zeros(width, device=device)
        self.sequences = 0

    def add(self, x: Tensor) -> None:
        """One sequence."""
        self.total += x.square().sum(0)
        self.sequences += 1

    @property
    def value(self) -> Tensor:
        """a, (in)."""
        return self.total / max(1, self.sequences)


class Gram:
    """G = X^T X, (in, in), over all sequences: the Hessian of a least-squares output error up to a factor."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.value = torch.zeros(width, width, device=device)

    def add(self, x: Tensor) -> None:
        """One sequence."""
        self.value.addmm_(x.mT, x)


class Moments(SquaredNorm):
    """`SquaredNorm` with u_j = (1/n) sum_t X_tj and the mean of each sequence's variance (Zhang et al. 2023, arXiv 2310.08915).

    The variance is that within a sequence, weighted by tokens: what differs between sequences does not count, as in the paper's code.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        super().__init__(width, device)
        self.sums = torch.zeros(width, device=device)
        self.spread = torch.zeros(width, device=device)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """One sequence."""
        super().add(x)
        self.sums += x.sum(0)
        self.spread += x.var(0, correction=0) * len(x)
        self.tokens += len(x)

    @property
    def mean(self) -> Tensor:
        """u, (in)."""
        return self.sums / max(1, self.sequences)

    @property
    def variance(self) -> Tensor:
        """(in)."""
        return self.spread / max(1, self.tokens)


def output_error(change: Tensor, gram: Tensor) -> float:
    """|X D^T|_F^2 of a change D (out, in) of the weight, from G = X^T X."""
    return float(((change @ gram) * change).sum())
