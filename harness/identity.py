"""The cell id: a hash of all that decides the numbers, data and weights by their content. Torch-free."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness import sourcetexts
from harness.config import ModelConfig
from harness.resolve import Resolved, steps
from harness.typed import plain
from harness.weights import fingerprint
from tasks.datasets import DATASETS
from tasks.sources import Sources
from tasks.spec import ClassificationConfig

LENGTH = 12
"""Hexadecimal digits of a cell id."""


@dataclass(frozen=True)
class Identity:
    """Which cell a configuration is."""

    cell: str
    """The cell id."""
    canonical: dict[str, Any]
    """The typed cell half that was hashed."""
    deterministic: bool
    """No seed can change the numbers, so the seed is left out."""
    sources: dict[str, str]
    """Hashes of the method's source files; not part of the id, they decide staleness."""


def identify(resolved: Resolved) -> Identity:
    """The identity of a checked configuration.

    Raises `UserError` where the data or the weights are not on this machine and cannot be named without them.
    """
    run = resolved.run
    weights = fingerprint(resolved.cell.model, run.assets, resolved.data_dir)
    data = data_fingerprints(resolved.cell.task, _sources(resolved.data_dir, run.assets, run.offline))
    canonical = canonical_half(resolved, weights, data)
    return Identity(digest(canonical), canonical, deterministic(resolved), sourcetexts.sources(resolved.cell.method))


def canonical_half(resolved: Resolved, weights: str, data: dict[str, str]) -> dict[str, Any]:
    """Plain JSON of the cell half. Keys that cannot matter are left out: the recipe of a cell without optimizer steps, a moot seed."""
    cell, traits = resolved.cell, resolved.traits
    half: dict[str, Any] = {
        "method": {"name": cell.method, **plain(cell.method_config)},
        "model": model_half(cell.model, weights),
        "task": plain(cell.task),
        "data": data,
        "budget": plain(cell.budget),
        "precision": cell.precision,
    }
    if steps(traits):
        half["recipe"] = plain(cell.recipe)
    if not deterministic(resolved):
        half["seed"] = cell.seed
    return half


def model_half(model: ModelConfig, weights: str) -> dict[str, Any]:
    """What names a model: never a path, a branch or a note."""
    return {"name": model.name, "family": model.family, "max_length": model.max_length, "weights": weights}


def deterministic(resolved: Resolved) -> bool:
    """True where the method neither trains nor draws anything."""
    return not resolved.traits.trains and not resolved.traits.randomness


def digest(canonical: dict[str, Any]) -> str:
    """12 hexadecimal digits of the sha256 of the canonical JSON; `ValueError` on NaN or infinity."""
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def data_fingerprints(task: Any, sources: Sources) -> dict[str, str]:
    """Split of the source -> fingerprint of its content, for every split that the task reads."""
    return {split: sources.fingerprint(task.dataset, split) for split in source_splits(task)}


def source_splits(task: Any) -> tuple[str, ...]:
    """The splits of the source that a task reads; its dev rows are the first split called `validation...`."""
    if not isinstance(task, ClassificationConfig):
        return (task.split,)
    dev = next(split for split in DATASETS[task.dataset].splits if split.startswith("validation"))
    return (dev,) if task.rows == "val-split" else ("train", dev)


@cache
def _sources(data_dir: Path | None, assets: str, offline: bool) -> Sources:
    return Sources(data_dir, Path(assets), offline)
