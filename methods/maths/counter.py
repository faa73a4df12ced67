"""Random numbers as a function of (key, index): without state or order, equal on every device, from any index on.

u(key, i) = mix(mix(i + key_0) xor key_1), where mix is the finalizer of MurmurHash3: xor-shifts and multiplications of 32-bit words,
which wrap around in torch's int32 arithmetic.
"""

import torch
from torch import Tensor

LIMIT = 2**31
"""How many numbers a key gives."""
ROUNDS = ((16, 0x85EBCA6B - 2**32), (13, 0xC2B2AE35 - 2**32), (16, 1))
"""(shift, factor as a signed word)."""


def keys(n: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """n independent keys, int32 (n, 2)."""
    drawn = torch.randint(-(2**31), 2**31, (n, 2), generator=generator)
    return drawn.to(torch.int32).to(device)


def uniform(key: Tensor, start: int, count: int) -> Tensor:
    """Numbers `start` to `start + count` of U[-1, 1) under a key (2,), float32 (count,) on the key's device, in steps of 2^-23.

    Raises:
        ValueError: the indices go beyond `LIMIT`.
    """
    if start + count > LIMIT:
        raise ValueError(f"{start + count} numbers under one key; there are {LIMIT}")
    words = torch.arange(start, start + count, dtype=torch.int32, device=key.device)
    _mix(words.add_(key[0]))
    _mix(words.bitwise_xor_(key[1]))
    return words.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-23)


def _mix(words: Tensor) -> None:
    """In place. A right shift of a signed word repeats its sign, so the bits that come in are masked."""
    for shift, factor in ROUNDS:
        shifted = words.bitwise_right_shift(shift).bitwise_and_(2 ** (32 - shift) - 1)
        words.bitwise_xor_(shifted)
        if factor != 1:
            words.mul_(factor)
