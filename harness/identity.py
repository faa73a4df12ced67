"""The cell id: a hash of all that decides the numbers, data and weights by their content. Torch-free."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness import external, sourcetexts
from harness.config import ModelConfig
from harness.resolve import Resolved, steps
from harness.typed import plain
from harness.weights import fingerprint
from tasks.calibration import SOURCES
from tasks.sources import Sources
from tasks.spec import LmEvalConfig

UNVERSIONED = {"version": 1}
"""A protocol's version marks results (`harness.stale`), not cells, so that a new version never retrains. Hashed as it always was."""
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
    needs: dict[str, str] = field(default_factory=dict)
    """Name -> cell id of the cells that this one is made from."""


def identify(resolved: Resolved) -> Identity:
    """The identity of a checked configuration.

    Raises `UserError` where the data or the weights are not on this machine and cannot be named without them.
    """
    run = resolved.run
    weights = fingerprint(resolved.cell.model, run.assets, resolved.data_dir)
    sources = _sources(resolved.data_dir, run.assets, run.offline)
    data = data_fingerprints(resolved.cell.task, sources) | _text_fingerprints(resolved, sources)
    needs = {name: identify(need).cell for name, need in resolved.needs.items()}
    canonical = canonical_half(resolved, weights, data) | external.half(resolved) | ({"dependencies": needs} if needs else {})
    return Identity(digest(canonical), canonical, deterministic(resolved), sourcetexts.of_method(canonical["method"]), needs)


def canonical_half(resolved: Resolved, weights: str, data: dict[str, str]) -> dict[str, Any]:
    """Plain JSON of the cell half. Keys that cannot matter are left out: the recipe of a cell without optimizer steps, a moot seed."""
    cell, traits = resolved.cell, resolved.traits
    half: dict[str, Any] = {
        "method": {"name": cell.method, **plain(cell.method_config)},
        "model": model_half(cell.model, weights),
        "task": plain(cell.task) | UNVERSIONED,
        "data": data,
        "budget": plain(cell.budget),
        "precision": cell.precision,
    }
    if cell.calibration is not None:
        half["calibration"] = plain(cell.calibration)
    if cell.corpus is not None:
        half["corpus"] = plain(cell.corpus)
    if steps(traits):
        half["recipe"] = plain(cell.recipe)
    if not deterministic(resolved):
        half["seed"] = cell.seed
    return half


def model_half(model: ModelConfig, weights: str) -> dict[str, Any]:
    """What names a model: never a path, a branch or a note."""
    return {"name": model.name, "family": model.family, "max_length": model.max_length, "weights": weights}


def deterministic(resolved: Resolved) -> bool:
    """True where neither the method nor a cell that it needs trains or draws anything."""
    own = not resolved.traits.trains and not _draws(resolved)
    return own and all(deterministic(need) for need in resolved.needs.values())


def _draws(resolved: Resolved) -> set[str]:
    """What the cell's seed decides beside training: the method's own draws, and calibration text without a seed of its own."""
    calibration = resolved.cell.calibration
    own = set(resolved.traits.randomness)
    if calibration is None:
        return own
    return own | {"calibration"} if calibration.seed is None else own - {"calibration"}


def _text_fingerprints(resolved: Resolved, sources: Sources) -> dict[str, str]:
    texts = {"calibration": resolved.cell.calibration, "corpus": resolved.cell.corpus}
    found = {name: SOURCES[text.source] for name, text in texts.items() if text is not None}
    return {name: sources.fingerprint(source.dataset, source.split) for name, source in found.items()}


def digest(canonical: dict[str, Any]) -> str:
    """12 hexadecimal digits of the sha256 of the canonical JSON; `ValueError` on NaN or infinity."""
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def data_fingerprints(task: Any, sources: Sources) -> dict[str, str]:
    """Fingerprint of the content of every split that the task reads, by the name that the task gives it (mostly the split's).

    And the version of a library whose own definition the task is.
    """
    definitions = task.definitions() if isinstance(task, LmEvalConfig) else {}
    return {name: sources.fingerprint(*place) for name, place in task.reads().items()} | definitions


@cache
def _sources(data_dir: Path | None, assets: str, offline: bool) -> Sources:
    return Sources(data_dir, Path(assets), offline)
