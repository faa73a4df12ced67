"""Resolves the recipe of a cell: matchers over (task, model, budget), the most specific wins per value, each with its origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import conf
from harness.config import Recipe
from harness.nearmiss import unknown
from methods.spec import UserError, choice

KEYS = ("task", "model", "budget")
ORIGINS = ("paper", "tuned", "default")
OVERRIDE = "override"
VALUES = tuple(f.name for f in fields(Recipe))


@dataclass(frozen=True)
class Matcher:
    """One entry of a `recipes:` list: under `when`, these values."""

    when: dict[str, str]
    """Key of `KEYS` -> a name or a glob."""
    origin: str
    source: str
    """Where the values are published, or how they were found."""
    values: dict[str, Any]

    def specificity(self, names: Mapping[str, str]) -> tuple[int, int] | None:
        """(number of keys, number of them that are exact), or None where the matcher does not hold."""
        if not all(fnmatchcase(names[key], pattern) for key, pattern in self.when.items()):
            return None
        return len(self.when), sum(names[key] == pattern for key, pattern in self.when.items())


def parse(entries: Sequence[Mapping[str, Any]], where: str) -> list[Matcher]:
    """Matchers from plain YAML; `UserError` names the file (`where`) of a wrong one."""
    return [_matcher(entry, where) for entry in entries]


def resolve(matchers: Sequence[Matcher], names: Mapping[str, str], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, origins) by value name: more keys win, then exact over glob, then the later; non-null `overrides` above all.

    Args:
        matchers: from the most general file to the most special one.
        names: what `task`, `model` and `budget` are called in this cell.
        overrides: the top-level `recipe` block.
    """
    ranked = [(matcher.specificity(names), matcher) for matcher in matchers]
    holding = sorted((item for item in ranked if item[0] is not None), key=lambda item: item[0])
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given = {key: value for key, value in overrides.items() if value is not None}
    for _, matcher in holding:
        values |= matcher.values
        origins |= dict.fromkeys(matcher.values, matcher.origin)
    return values | given, origins | dict.fromkeys(given, OVERRIDE)


@cache
def base() -> list[Matcher]:
    """The matchers of `conf/recipes.yaml`, under every method's own."""
    path = Path(conf.__file__).parent / "recipes.yaml"
    return parse(yaml.safe_load(path.read_text())["recipes"], "conf/recipes.yaml")


def _matcher(entry: Mapping[str, Any], where: str) -> Matcher:
    for key in entry:
        _known(f"{where}: the recipe key", key, ("when", "origin", "source", "values"))
    when, values = dict(entry.get("when") or {}), dict(entry.get("values") or {})
    for key in when:
        _known(f"{where}: when.", key, KEYS)
    for key in values:
        _known(f"{where}: values.", key, VALUES)
    choice(f"{where}: origin", entry.get("origin"), ORIGINS)
    return Matcher({key: str(pattern) for key, pattern in when.items()}, entry["origin"], str(entry.get("source", "")), values)


def _known(what: str, key: str, allowed: Sequence[str]) -> None:
    if key not in allowed:
        raise UserError(unknown(what, key, allowed, sign="" if what.endswith(".") else " "))
