"""Puts a number in the place of `match_params:300k` before a cell is identified: solved in a child process, kept on disk. Torch-free."""

import copy
import hashlib
import json
import os
import subprocess
import sys
import types
import typing
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness import expressions, sourcetexts
from harness.compat import incompatible
from harness.expressions import BYTES, Asked
from harness.registry import MethodSpec, load_spec
from harness.resolve import MATCHED, Resolved, resolve, without_hydra
from harness.store import write_json
from methods.spec import UserError

CACHE = ".matched.json"
"""In the folder of assets: request -> solution."""
LIBRARIES = ("torch", "transformers", "peft")
TRIED = {False: tuple(2**power for power in range(11)), True: (0.5, 0.1, 0.01, 0.9, 1.0, 0.0)}
"""Values (integers, fractions) of which one is in range, so that all else can be checked before anything is counted."""


def settled(cfg: DictConfig) -> DictConfig:
    """The configuration with the solved number and a note of what it was matched to (`resolve.MATCHED`); as it is if nothing is asked.

    An impossible pair of method and model is not counted and gets any number that is in range. `UserError` where the key is no number,
    the budget cannot be met, or the method cannot be counted without data.
    """
    asked = _asked(cfg)
    if asked is None:
        return cfg
    fraction = _is_fraction(load_spec(str(cfg.method.name)), asked)
    start, resolved = _in_range(cfg, asked, fraction)
    if incompatible(resolved):
        return _with(cfg, asked, start)
    request = {
        "values": OmegaConf.to_container(without_hydra(_with(cfg, asked, start)), resolve=True), "key": asked.key, "kind": asked.kind,
        "budget": asked.budget, "fraction": fraction, "text": asked.text,
    }  # fmt: skip
    return _with(cfg, asked, _solved(request, resolved))


def typed(cfg: DictConfig) -> list[str]:
    """The overrides that type what was solved: for the cells that this one needs."""
    return [f"method.{key}={cfg.method[key]}" for key in cfg.get(MATCHED) or {}]


def _asked(cfg: DictConfig) -> Asked | None:
    block = cfg.get("method")
    if not OmegaConf.is_dict(block) or "match_" not in str(OmegaConf.to_container(block, resolve=False)):
        return None
    try:
        return expressions.asked(OmegaConf.to_container(block, resolve=True))
    except OmegaConfBaseException:
        return None  # `resolve` says which reference it is


def _is_fraction(spec: MethodSpec, asked: Asked) -> bool:
    """False for an integer key, True for a float; `UserError` for any other."""
    kinds = {key: _number(hint) for key, hint in typing.get_type_hints(spec.config).items()}
    kind = kinds.get(asked.key)
    if kind is None:
        numeric = ", ".join(key for key, number in kinds.items() if number) or "none"
        raise UserError(f"method.{asked.key}={asked.text} is not allowed: {asked.key} is no number; numbers of {spec.slug}: {numeric}")
    return kind is float


def _number(hint: Any) -> type | None:
    """`int` or `float` of a key that may hold one."""
    united = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = set(typing.get_args(hint) if united else [hint]) - {type(None)}
    return next(iter(options)) if options in ({int}, {float}) else None


def _in_range(cfg: DictConfig, asked: Asked, fraction: bool) -> tuple[int | float, Resolved]:
    """A value that the configuration allows, and what it then is; the first refusal where all values are refused."""
    refusals: list[UserError] = []
    for value in TRIED[fraction]:
        try:
            return value, resolve(_with(cfg, asked, value))
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _with(cfg: DictConfig, asked: Asked, value: int | float) -> DictConfig:
    changed = copy.deepcopy(cfg)
    with open_dict(changed):
        changed.method[asked.key] = value
        changed[MATCHED] = {asked.key: asked.text}
    return changed


def _solved(request: dict[str, Any], resolved: Resolved) -> int | float:
    file = Path(resolved.run.assets) / CACHE
    known = json.loads(file.read_text()) if file.is_file() else {}
    name = _name(request, resolved)
    if name not in known:
        known[name] = _ask(request)
        write_json(file, known)
    return known[name]


def _name(request: dict[str, Any], resolved: Resolved) -> str:
    """All that a count depends on: the method, its sources and libraries, the architecture, and for bytes the task, whose head counts."""
    values = request["values"]
    method = {key: value for key, value in values["method"].items() if key not in ("recipes", request["key"])}
    task = values["task"] if request["kind"] == BYTES else values["task"]["kind"]
    facts = [
        request["key"], request["kind"], request["budget"], method, values["model"]["architecture"], task, values["precision"],
        sourcetexts.sources(resolved.cell.method), [version(library) for library in LIBRARIES],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _ask(request: dict[str, Any]) -> int | float:
    process = _child()
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the process that counts parameters ended with code {process.wait()}")
    told = json.loads(line)
    if "refused" in told:
        raise UserError(told["refused"])
    return told["value"]


@cache
def _child() -> subprocess.Popen[str]:
    """The one process that counts, started with the first request; it ends with this one."""
    path = os.pathsep.join([str(sourcetexts.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "harness.counting"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
