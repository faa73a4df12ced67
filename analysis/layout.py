"""What a sweep says about its table: the `table` block of `sweeps/<name>.yaml`."""

from dataclasses import dataclass, fields
from importlib.resources import files

import yaml

from methods.spec import UserError, choice

CENTERS = ("mean", "median")


@dataclass(frozen=True)
class Layout:
    """The `table` block; every key may be left out."""

    title: str = "All records"
    heading: str = ""
    """What a reader must know before the numbers, for instance `demonstration`."""
    baseline: str | None = None
    """Method or row label that all other rows are compared with."""
    center: str = "mean"
    """Over the seeds: `mean`, or `median` as LoRA reports GLUE."""
    decimals: int | None = None
    """Of the metric columns; None = 3, and 2 for perplexity."""


def layout(sweep: str | None) -> Layout:
    """The layout of a sweep; the plain one for a sweep that is not ours or without a `table` block.

    Raises `UserError` if the block has keys that do not exist.
    """
    if sweep is None:
        return Layout()
    path = files("sweeps") / f"{sweep}.yaml"
    block = (yaml.safe_load(path.read_text()) or {}).get("table") if path.is_file() else None
    known = [field.name for field in fields(Layout)]
    unknown = sorted(set(block or {}) - set(known))
    if unknown:
        raise UserError(f"sweeps/{sweep}.yaml: table.{unknown[0]} is not a key; allowed: {', '.join(known)}")
    choice(f"sweeps/{sweep}.yaml: table.center", (block or {}).get("center", "mean"), CENTERS)
    return Layout(**{"title": sweep, **(block or {})})
