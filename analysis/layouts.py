"""Tables as papers lay them out, as data: `analysis/layouts/<slug>.yaml`, typed and checked.

A layout names rows (methods with their settings, in order, under headings) and columns (patterns of protocol ids, or means over tasks). It
holds no number: what it shows comes from records, or is a published value of `analysis/papers`, marked as one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from analysis.sides import SIDES
from harness.nearmiss import unknown
from harness.typed import build
from methods.spec import UserError, choice

FOLDER = Path(str(files("analysis"))) / "layouts"
GROUPS = ("none", "family")


@dataclass
class RowSpec:
    """One line of the layout: a heading, or a method with its settings."""

    group: str | None = None
    """A heading over the rows that follow; stands alone."""
    method: str | None = None
    """Its name, a chain such as `wanda+lora`, or a pattern such as `*`."""
    where: dict[str, Any] = field(default_factory=dict)
    """Setting -> value, for instance `sparsity: 0.5`; keys with a dot are columns of the frame (`recipe.lr`)."""
    show: str | None = None
    """What the paper calls it."""

    def __post_init__(self) -> None:
        if (self.group is None) == (self.method is None):
            raise UserError("give exactly one of: group, method")
        if self.group is not None and (self.where or self.show):
            raise UserError("a group is a heading; it has no where and no show")

    @property
    def pattern(self) -> bool:
        """Does it stand for whatever methods there are?"""
        return self.method is not None and "*" in self.method


@dataclass
class ColumnSpec:
    """One column of the layout; a column each where records hold several forms of it."""

    show: str
    protocol: str | None = None
    """A pattern of protocol ids: `glue/mnli@*`."""
    mean: list[str] | None = None
    """Tasks whose unweighted mean it is."""
    form: str = "*"
    """Of a mean: a pattern of what the protocol ids of its tasks say behind the @."""
    metric: str | None = None
    """Only where it is the metric that the records' tables show; null = whichever that is."""
    published: str | None = None
    """Pattern of the protocol of published values, where it is not that of the records."""
    decimals: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if (self.protocol is None) == (self.mean is None):
            raise UserError("give exactly one of: protocol, mean")


@dataclass(kw_only=True)
class Header:
    """The keys of a layout that are no lists of blocks."""

    title: str
    sides: list[str] = field(default_factory=list)
    decimals: int = 1
    scale: float = 100.0
    """What scores are shown times; not perplexities."""
    spread: bool = True
    """Show ± and the number of seeds, in small."""
    published: bool = True
    """Show published values of the rows, each in a line of its own."""
    group_by: str = "none"
    models: list[str] | None = None
    """Only these, in this order; null = all that have a row."""


@dataclass(kw_only=True)
class PaperLayout(Header):
    """One file."""

    slug: str
    rows: list[RowSpec]
    columns: list[ColumnSpec]


BLOCKS = {"rows": RowSpec, "columns": ColumnSpec}
KEYS = (*BLOCKS, *(key.name for key in fields(Header)))


def slugs() -> list[str]:
    """The layouts that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def paper_layout(slug: str) -> PaperLayout:
    """A layout by name. Raises `UserError`, one sentence that names the file and the key, for what it does not allow."""
    if slug not in slugs():
        raise UserError(unknown("layout", slug, slugs()))
    return parse(slug, yaml.safe_load((FOLDER / f"{slug}.yaml").read_text(encoding="utf-8")))


def parse(slug: str, values: Any) -> PaperLayout:
    """`paper_layout` of a file that is read already."""
    name = f"{slug}.yaml"
    if not isinstance(values, Mapping):
        raise UserError(f"{name}: the top level is a mapping of {', '.join(KEYS)}")
    for key in values:
        if key not in KEYS:
            raise UserError(f"{name}: {unknown('key', str(key), KEYS, sign=' ')}")
    if not isinstance(values.get("title"), str):
        raise UserError(f"{name}: title is missing; give title: <text>")
    lists = {key: _list(values.get(key), schema, f"{name}: {key}") for key, schema in BLOCKS.items()}
    made = build(Header, {key: value for key, value in values.items() if key not in BLOCKS}, "")
    for side in made.sides:
        choice(f"{name}: sides", side, SIDES)
    choice(f"{name}: group_by", made.group_by, GROUPS)
    if twice := [column.show for column in lists["columns"] if sum(other.show == column.show for other in lists["columns"]) > 1]:
        raise UserError(f"{name}: two columns are called {twice[0]}; names are unique in a layout")
    return PaperLayout(slug=slug, **lists, **vars(made))


def _list(blocks: Any, schema: Any, prefix: str) -> list[Any]:
    if not isinstance(blocks, list) or not blocks:
        raise UserError(f"{prefix} is missing; give a list of blocks")
    return [_block(schema, block, f"{prefix}[{index}]") for index, block in enumerate(blocks)]


def _block(schema: Any, block: Any, prefix: str) -> Any:
    if not isinstance(block, Mapping):
        raise UserError(f"{prefix}={block} is not allowed; give a mapping")
    try:
        return build(schema, block, prefix)
    except UserError as error:
        text = str(error)
        raise error if text.startswith(prefix) else UserError(f"{prefix}: {text}") from error
