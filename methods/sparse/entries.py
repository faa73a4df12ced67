"""Linear maps of which single entries train, at positions that may change during training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from methods.base import TrainSettings, parameter_groups
from methods.maths.partial import Entries
from methods.sparse.partial import PartialLinear


class EntryLinear(PartialLinear):
    """K entries of W train as `values` (K,), at the flat `positions` (K,) of W (out, in)."""

    def __init__(self, base: nn.Module, positions: Tensor, *, adds: bool) -> None:
        """`adds`: values start at 0 and are added to W; else they start at W and stand in its place."""
        super().__init__(base)
        self.adds = adds
        self.watch: Callable[[Tensor], None] | None = None
        """Is shown dL/dW (out, in) in the backward pass, once for each use of the map."""
        weight = self.base()[0]
        narrow = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.register_buffer("positions", positions.to(self.device, narrow))
        self.values = nn.Parameter(torch.zeros(len(positions), device=self.device) if adds else self.part().of(weight).float())

    def part(self) -> Entries:
        """The entries."""
        return Entries(self.positions, self.adds, watch=self.watch)


def entry_groups(model: nn.Module, settings: TrainSettings, **options: object) -> list[dict[str, object]]:
    """The usual groups with the entries apart: these decay, although they are vectors, and have `options`."""
    values = [module.values for module in model.modules() if isinstance(module, EntryLinear)]
    own = {id(p) for p in values}
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in parameter_groups(model, settings)]
    entries = {"params": values, "lr": settings.lr, "weight_decay": settings.weight_decay, **options}
    return [entries, *(group for group in rest if group["params"])]
