"""The processes of one cell as torch sees them: all train, the first one writes, all hold the same values."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness import ranks
from harness.seeding import derive

TIMEOUT = timedelta(days=7)
"""The others wait while the first evaluates; a dead process is the dispatcher's business (`harness.ranks`), not a clock's."""


def start(device: str) -> str:
    """Join the cell's other processes, where it has any; the device of this one. To be called once, before any tensor is made."""
    rank = ranks.current()
    if rank is None:
        return device
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    store = dist.FileStore(str(rank.meeting), rank.world)
    dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.world, timeout=TIMEOUT)
    if device == "cpu":
        return device
    torch.cuda.set_device(rank.number)
    return f"cuda:{rank.number}"


def world() -> int:
    """How many processes train together now."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    if world() == 1:
        return flag
    value = torch.tensor([int(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def from_main(fn: Callable[[], float]) -> float:
    """`fn()` of the first process, in all; it is called nowhere else."""
    if world() == 1:
        return fn()
    value = torch.tensor([fn() if is_main() else 0.0], dtype=torch.float64)
    dist.broadcast(value, 0)
    return float(value)


def own_draws(seed: int, step: int) -> None:
    """Give every process but the first its own dropout for one step: a function of (seed, step, rank), so a resume needs no state of it."""
    if not is_main():
        torch.manual_seed(derive(seed, "rank", str(rank()), str(step)))


def check_alike(tensors: dict[str, Tensor], when: str) -> None:
    """`RuntimeError` unless these named tensors are equal, bit by bit, in all processes."""
    if world() == 1:
        return
    own = torch.frombuffer(bytearray(_digest(tensors)), dtype=torch.uint8)
    all_of_them = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(all_of_them, own)
    other = [number for number, digest in enumerate(all_of_them) if not torch.equal(digest, all_of_them[0])]
    if other:
        raise RuntimeError(f"{when} the weights of ranks {other} are not those of rank 0: something was drawn outside ctx.generator")


def leave() -> bool:
    """Part from the other processes; True in the first one, which goes on alone."""
    main = is_main()
    if dist.is_initialized():
        barrier()
        with suppress(RuntimeError):  # the others may be gone already
            dist.destroy_process_group()
    return main


class Objective(nn.Module):
    """The loss of a batch as a module: what a wrapper wraps, so that the method itself always sees its own model.

    However often and along whichever path the method runs the model, the wrapper sees one forward pass that ends in the loss.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The scalar loss."""
        return self.loss(self.model, batch)


def _digest(tensors: dict[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
