"""Every random draw comes from a generator named after its purpose, so no draw depends on earlier ones."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *names: str) -> int:
    """A 31-bit seed that is a hash of the run's seed and a purpose."""
    text = "/".join([str(seed), *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def seed_everything(seed: int, *names: str) -> None:
    """Seed Python, NumPy and torch (all devices) for one named stretch of work."""
    value = derive(seed, *names)
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator of its own for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *names))


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Run a block (an evaluation while training) and put all global generators back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
