"""Blockwise quantisation to NormalFloat codebooks (Dettmers et al. 2023, arXiv 2305.14314, Appendix E), simulated: values, not codes.

Each block of consecutive entries (row-major) is divided by its largest size and rounded to the nearest of 2^bits quantiles of N(0, 1).
"""

import torch
from torch import Tensor

TAIL = 0.9677083
"""The probability of the outermost quantile; NF4's own value, used for every number of bits."""


def codebook(bits: int) -> Tensor:
    """The 2^bits codes, float32, ascending, from -1 over 0 to 1: half of them positive, one fewer negative, as NF4 has them."""
    half = 2 ** (bits - 1)
    positive = torch.special.ndtri(torch.linspace(TAIL, 0.5, half + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(TAIL, 0.5, half, dtype=torch.float64)[:-1])
    codes = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return (codes / codes.max()).float()


def round_to_normal_float(weight: Tensor, bits: int, block: int = 64) -> Tensor:
    """What `weight` reads as after quantisation and dequantisation, same shape, float32. The last block may be shorter."""
    flat = weight.float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = codebook(bits).to(weight.device)
    middles = (codes[1:] + codes[:-1]) / 2
    nearest = codes[torch.bucketize(blocks / scale.clamp(min=torch.finfo(torch.float32).tiny), middles)]
    return (nearest * scale).flatten()[: len(flat)].view(weight.shape)
