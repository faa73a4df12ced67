"""SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, Algorithm 1): prune W (out, in) column by column and make up for it to the right.

H = X^T X + damp mean(diag) I, H^-1 = U^T U with U upper triangular. For column i with mask M_i: e = w_i (1 - M_i) / U_ii, then
W_{:, j} -= e U_ij for j >= i. Pure, float32.
"""

import torch
from torch import Tensor

from methods.maths.masks import layer_mask, nm_mask
from methods.spec import Diverged


def inverse_factor(gram: Tensor, damp: float) -> Tensor:
    """U (in, in), upper triangular, with (G + damp mean(diag G) I)^-1 = U^T U; an input that is always zero counts as 1.

    Raises:
        Diverged: the damped G is not positive definite in float32.
    """
    h = gram.clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    try:
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    except torch.linalg.LinAlgError:
        raise Diverged(f"the inputs' Gram matrix is not positive definite at method.damp={damp}; give a larger one") from None


def saliency(weight: Tensor, factor: Tensor) -> Tensor:
    """w^2 / U_jj^2: twice the growth of the output error when w alone goes and the columns to its right make up for it."""
    return (weight / factor.diagonal()).square()


def sparsegpt(weight: Tensor, gram: Tensor, sparsity: float, nm: tuple[int, int] | None, block: int, damp: float) -> tuple[Tensor, Tensor]:
    """(W' with exact zeros, mask True = kept), both (out, in).

    Masks are chosen within each `block` of columns from the weights as they are by then: exactly round(s out B) of a block, whose rows
    compete, or N of each M inputs. Later columns are updated once per block.

    Raises:
        ValueError: `block` is not a multiple of M.
    """
    if nm and block % nm[1]:
        raise ValueError(f"block={block} is not a multiple of {nm[1]}")
    factor = inverse_factor(gram, damp)
    columns = weight.mT.clone(memory_format=torch.contiguous_format)  # (in, out): what the loop takes at a time lies together
    columns[gram.diagonal() == 0] = 0
    mask = torch.empty_like(columns, dtype=torch.bool)
    for start in range(0, len(columns), block):
        part = slice(start, min(start + block, len(columns)))
        errors = _block(columns[part], factor[part, part], mask[part], sparsity, nm)
        columns[part.stop :] -= factor[part, part.stop :].mT @ errors
    return columns.mT.contiguous(), mask.mT.contiguous()


def _block(columns: Tensor, factor: Tensor, mask: Tensor, sparsity: float, nm: tuple[int, int] | None) -> Tensor:
    """Prune the columns (B, out) of one block in place, with their masks; their errors (B, out)."""
    errors = torch.zeros_like(columns)
    if nm is None:
        mask.copy_(layer_mask(saliency(columns.mT, factor), sparsity).mT)
    for i, column in enumerate(columns):
        if nm and i % nm[1] == 0:
            group = slice(i, i + nm[1])
            mask[group] = nm_mask(saliency(columns[group].mT, factor[group, group]), *nm).mT
        torch.div(column.masked_fill(mask[i], 0), factor[i, i], out=errors[i])
        columns[i:].addr_(factor[i, i:], errors[i], alpha=-1)
        column.masked_fill_(~mask[i], 0)
    return errors
