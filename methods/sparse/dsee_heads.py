"""DSEE's structured step (Chen et al. 2023, arXiv 2111.00160, Section 3.3): in every block the heads whose updates are smallest go.

Importance of a head: the sum of |update| over its rows of q and v. A removed head takes its rows of W, B and S in q, k, v along, and its
columns in the output map. Where heads share keys and values a whole group goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.prune.structured import HEADS, Group, groups, lowest_removed, unit_sums
from methods.spec import UserError


@dataclass(frozen=True)
class Slices:
    """Rows and columns (ascending) of a map that stay; None = all."""

    rows: Tensor | None
    columns: Tensor | None


def choose(model: nn.Module, scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Group -> heads that stay when each block loses the `count` of least importance; `scores`: |update| (out, in) by map."""
    present = [group for group in groups(model) if group.kind == HEADS]
    for group in present:
        if count >= group.units:
            raise UserError(f"method.heads={count} leaves nothing of the {group.units} groups of heads of a block; give less")
    return {group.key: lowest_removed(_importance(group, scores), count) for group in present}


def _importance(group: Group, scores: Mapping[str, Tensor]) -> Tensor:
    """Over the maps that have an update; `UserError` where none has."""
    seen = replace(
        group,
        rows={name: rows for name, rows in group.rows.items() if name in scores},
        columns={name: columns for name, columns in group.columns.items() if name in scores and not set(group.rows) & set(scores)},
    )
    parts = list(unit_sums(seen, scores).values())
    if not parts:
        raise UserError("method.targets has no map of the attention, so no head has an update; give method.targets=[q,v]")
    return torch.stack(parts).sum(0).cpu()


def slices(model: nn.Module, kept: Mapping[str, Tensor]) -> dict[str, Slices]:
    """Map -> what stays of it once all heads but `kept` are removed."""
    found = {}
    for group in groups(model):
        if group.key in kept:
            stay = kept[group.key]
            found |= {name: Slices(rows[stay].flatten().sort().values, None) for name, rows in group.rows.items()}
            found |= {name: Slices(None, columns[stay].flatten()) for name, columns in group.columns.items()}
    return found


def moved(positions: Tensor, width: int, slices: Slices) -> tuple[Tensor, Tensor]:
    """Ascending flat positions in a matrix of `width` columns -> (those that stay, as bool; where they are in what stays)."""
    row, column = positions // width, positions % width
    stays = torch.ones_like(positions, dtype=torch.bool)
    if slices.rows is not None:
        kept = slices.rows.to(positions.device)
        stays, row = torch.isin(row, kept), torch.searchsorted(kept, row)
    if slices.columns is not None:
        kept = slices.columns.to(positions.device)
        stays, column, width = torch.isin(column, kept), torch.searchsorted(kept, column), len(kept)
    return stays, (row * width + column)[stays]
