"""What a sweep says about its table: the `table` block of `sweeps/<name>.yaml`."""

from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any

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
    means: dict[str, list[str]] = field(default_factory=dict)
    """Name -> tasks whose mean is a column of its own, one per protocol form (see `analysis.means`); or -> exact protocol ids."""
    layout: str | None = None
    """A paper's layout (`analysis/layouts/<slug>.yaml`) that the sweep is shown in."""


def layout(sweep: str | None) -> Layout:
    """The layout of a sweep; the plain one for a sweep that is not ours or without a `table` block.

    Raises `UserError` if the block has keys that do not exist.
    """
    if sweep is None:
        return Layout()
    path = files("sweeps") / f"{sweep}.yaml"
    block = (yaml.safe_load(path.read_text()) or {}).get("table") if path.is_file() else None
    known = [key.name for key in fields(Layout)]
    unknown = sorted(set(block or {}) - set(known))
    if unknown:
        raise UserError(f"sweeps/{sweep}.yaml: table.{unknown[0]} is not a key; allowed: {', '.join(known)}")
    choice(f"sweeps/{sweep}.yaml: table.center", (block or {}).get("center", "mean"), CENTERS)
    _check_means(f"sweeps/{sweep}.yaml: table.means", (block or {}).get("means", {}))
    return Layout(**{"title": sweep, **(block or {})})


def _check_means(key: str, means: Any) -> None:
    for name, tasks in means.items() if isinstance(means, dict) else [("", means)]:
        listed = isinstance(tasks, list) and len(tasks) > 1 and all(isinstance(task, str) for task in tasks)
        if not listed or len(set(tasks)) < len(tasks) or len({"@" in task for task in tasks}) > 1:
            raise UserError(
                f"{key}.{name}={tasks} is not allowed; give two tasks or more, or as many protocol ids, none twice: [boolq, piqa]"
            )
