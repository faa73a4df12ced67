"""From plain values to a typed dataclass: unknown keys, missing keys, wrong types and non-finite numbers are refused."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.nearmiss import nearest
from methods.spec import Stage, UserError

T = TypeVar("T")
WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def build(schema: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """An instance of the dataclass `schema`; `prefix` is how the user calls the block, empty at the top level.

    Raises `UserError`, also from the dataclass's own `__post_init__`.
    """
    hints = typing.get_type_hints(schema)
    needed = [f.name for f in fields(schema) if f.default is MISSING and f.default_factory is MISSING]
    _check_keys(values, list(hints), needed, prefix)
    node = OmegaConf.structured(schema)
    for key, value in values.items():
        _assign(node, key, value, hints[key], _dotted(prefix, key))
    return OmegaConf.to_object(node)


def _assign(node: DictConfig, key: str, value: Any, hint: Any, name: str) -> None:
    try:
        node[key] = value
    except OmegaConfBaseException:
        raise UserError(f"{name}={shown(value)} is not allowed; allowed: {_words(hint)}") from None
    _check_finite(node[key], name)


def _check_keys(values: Mapping[str, Any], allowed: list[str], needed: list[str], prefix: str) -> None:
    for key in values:
        if key not in allowed:
            close = nearest(str(key), allowed)
            hint = f"did you mean {_dotted(prefix, close[0])}? " if close else ""
            names = ", ".join(_dotted(prefix, name) for name in allowed) or "nothing"
            raise UserError(f"{_dotted(prefix, key)} is unknown; {hint}allowed: {names}")
    if missing := [key for key in needed if key not in values]:
        raise UserError(f"{_dotted(prefix, missing[0])} is missing; give {_dotted(prefix, missing[0])}=<value>")


def _check_finite(value: Any, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value} is not allowed; allowed: a finite number")
    if isinstance(value, list | tuple | ListConfig):
        for item in value:
            _check_finite(item, name)


def _words(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint]
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_words(a) for a in arguments)
    if typing.get_origin(hint) in (list, tuple):
        return f"a list [a,b] where each is {_words(arguments[0])}"
    return "a mapping" if typing.get_origin(hint) is dict else str(hint)


def _dotted(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def shown(value: Any) -> str:
    """A value as the user would type it."""
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def plain(value: Any) -> dict[str, Any]:
    """The fields of a typed block as plain JSON values; a field with metadata `added` is left out while it has that value.

    So a field that is added later changes no cell id until someone uses it.
    """
    held = {f: getattr(value, f.name) for f in fields(value)}
    return {f.name: _plain(v) for f, v in held.items() if "added" not in f.metadata or f.metadata["added"] != v}


def as_plain(schema: type, block: Mapping[str, Any]) -> dict[str, Any]:
    """What `plain` would leave of the values of a block of `schema`."""
    later = {f.name: f.metadata["added"] for f in fields(schema) if "added" in f.metadata}
    return {key: value for key, value in block.items() if key not in later or later[key] != value}


def _plain(value: Any) -> Any:
    if isinstance(value, Stage):
        recipe = {"recipe": plain(value.recipe)} if value.trains() else {}
        return {"name": value.method, **plain(value.config), **recipe}
    return {key: _plain(v) for key, v in value.items()} if isinstance(value, dict) else value
