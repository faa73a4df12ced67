"""Published values for the rows and columns of a layout: the quality claims of `analysis/papers` that say which records they would be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from analysis import papers
from analysis.layouts import PaperLayout, RowSpec
from analysis.papers import MEMORY, Claim, Query

QUALITY = "quality"


@dataclass(frozen=True)
class Quoted:
    """The published values of one row of a layout, on one model, under one setting."""

    spec: RowSpec
    model: str
    """As `conf/model` calls it."""
    settings: str
    """What the claims fix beyond the row, for instance `r=16`."""
    claims: Mapping[int, Claim]
    """Column of the layout -> its claim."""


def quoted(layout: PaperLayout) -> list[Quoted]:
    """All published values that a layout has a place for, in the order of its rows."""
    found: dict[tuple[int, str, str], dict[int, Claim]] = {}
    for index, spec in enumerate(layout.rows):
        for claim, query in _claims(spec):
            for place, column in enumerate(layout.columns):
                if column.metric in (None, query.metric) and fnmatchcase(query.protocol, column.published or column.protocol or ""):
                    found.setdefault((index, query.model, _beyond(spec, query)), {}).setdefault(place, claim)
    return [Quoted(layout.rows[index], model, settings, claims) for (index, model, settings), claims in sorted(found.items())]


def value(claim: Claim) -> str:
    """As published; from memory where nobody has read it there."""
    return f"{claim.value:g}" + (" (from memory)" if claim.verified == MEMORY else "")


def setting(claim: Claim) -> str:
    """Whose number it is and under what."""
    return f"{claim.setting.model}, {claim.setting.protocol} ({claim.where}; {claim.verified})"


def _claims(spec: RowSpec) -> Iterator[tuple[Claim, Query]]:
    if spec.method in papers.slugs():
        for claim in papers.published(spec.method).claims:
            if claim.kind == QUALITY and claim.query is not None and claim.query.method == spec.method and _fits(spec, claim.query):
                yield claim, claim.query


def _fits(spec: RowSpec, query: Query) -> bool:
    """Does the query have each setting of the row, given or by default?"""
    given = _defaults(query.method) | _settings(query)
    return all(key in given and same(given[key], value) for key, value in spec.where.items())


@cache
def _defaults(method: str) -> dict[str, Any]:
    path = files("conf") / "method" / f"{method}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _settings(query: Query) -> dict[str, str]:
    """`method.r=16` -> r: 16."""
    pairs = (override.partition("=") for override in query.overrides or [])
    return {key.removeprefix("method."): text.strip("'\"") for key, _, text in pairs}


def _beyond(spec: RowSpec, query: Query) -> str:
    return ", ".join(f"{key}={text}" for key, text in _settings(query).items() if key not in spec.where)


def same(a: Any, b: Any) -> bool:
    """Equal as settings: `0.5` and 0.50, `true` and True, `[q,v]` and a recorded `q,v`."""
    return _plain(a) == _plain(b)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(map(str, value))
    text = str(value).strip()
    if text.startswith("["):
        return ",".join(map(str, yaml.safe_load(text)))
    try:
        return float(text)
    except ValueError:
        return text.lower() if text.lower() in ("true", "false") else text
