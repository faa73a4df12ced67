"""`${match_params:300k}` and `${match_bytes:1.2M}`: values that are solved for when a cell is planned. Torch-free.

The resolvers give the plain text `match_params:300k`, which may also be typed as it is; `harness.matching` puts the number in its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from methods.spec import UserError

PARAMS, BYTES = "match_params", "match_bytes"
MEANING = {PARAMS: "trainable parameters outside the task head", BYTES: "shipped bytes"}
SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
TEXT = re.compile(rf"({PARAMS}|{BYTES}):(.*)")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)")


@dataclass(frozen=True)
class Asked:
    """One key of the method that is to be solved for."""

    key: str
    kind: str
    """`match_params` or `match_bytes`."""
    budget: int
    text: str
    """As the record keeps it: `match_params:300k`."""


def register() -> None:
    """Make the two resolvers known to OmegaConf, before anything is composed."""
    for kind in MEANING:
        OmegaConf.register_new_resolver(kind, partial(_text, kind), replace=True)


def _text(kind: str, *given: Any) -> str:
    """However many arguments are typed, so that `asked` can refuse what is no budget."""
    return f"{kind}:{','.join(map(str, given))}"


def asked(method: Mapping[str, Any]) -> Asked | None:
    """What the block `method` asks to be solved; `UserError` for a budget that cannot be read and for two keys at once."""
    found = {str(key): match for key, value in method.items() if isinstance(value, str) and (match := TEXT.fullmatch(value))}
    if not found:
        return None
    if len(found) > 1:
        first, second = list(found)[:2]
        raise UserError(f"method.{first} and method.{second} both ask to be matched; give a number to one of them")
    key, match = next(iter(found.items()))
    return Asked(key, match[1], _amount(f"method.{key}={match[0]}", match[2]), match[0])


def _amount(given: str, text: str) -> int:
    match = NUMBER.fullmatch(text)
    amount = int(Decimal(match[1]) * SUFFIXES[match[2]]) if match else 0
    if amount < 1:
        raise UserError(f"{given} names no budget; allowed: a positive number, with k, M or G for thousands, millions or billions")
    return amount
