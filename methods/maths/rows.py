"""Where the matrices of a fused linear map lie among its output rows. Pure."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of a map in `groups` equal groups, each with an equal share of every one of `parts` matrices, in their order."""

    parts: int = 1
    groups: int = 1

    def split(self, whole: Tensor) -> Tensor:
        """(out, ...) -> (parts, out / parts, ...); with one part the tensor itself."""
        if self.parts == 1:
            return whole
        return whole.unflatten(0, (self.groups, self.parts, -1)).transpose(0, 1).flatten(1, 2)

    def join(self, split: Tensor) -> Tensor:
        """The inverse of `split`."""
        if self.parts == 1:
            return split
        return split.unflatten(1, (self.groups, -1)).transpose(0, 1).flatten(0, 2)
