"""Finds methods by name. Their `Config` and `traits` are read without importing them, so configuration never imports torch."""

import ast
import dataclasses
import importlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.nearmiss import unknown
from methods import spec
from methods.spec import Traits, UserError

METHODS = Path(spec.__file__).parent
CHAIN = "chain"
"""The one method that is no technique: several of them, one after another (`methods/chain.py`)."""


@dataclass(frozen=True)
class MethodSpec:
    """What configuration needs to know of a method."""

    slug: str
    path: Path
    config: type
    """The method's own `Config` dataclass, equal in its fields to the imported one."""
    traits: Traits
    """As the class declares them; `adjusted` applies a configuration's values."""

    def adjusted(self, config: Any) -> Traits:
        """The traits under one configuration (`Config.adjust`, where a method defines it)."""
        return config.adjust(self.traits) if hasattr(config, "adjust") else self.traits


@cache
def files() -> dict[str, Path]:
    """Slug -> file of every method: `methods/<family>/<slug>.py` with a class that holds a `Config`."""
    paths = [path for path in sorted(METHODS.glob("*/*.py")) if path.parent.name != "maths"]
    return {path.stem: path for path in paths if "class Config" in path.read_text()}


@cache
def load_spec(slug: str) -> MethodSpec:
    """`Config` and `traits` of a method, executed from its syntax tree alone; `UserError` if there is no such method."""
    path = _path(slug)
    method = _method_node(path)
    nodes = [node for node in method.body if _is_config(node) or _is_traits(node)]
    space = {**vars(dataclasses), **vars(typing), **vars(spec), "__name__": _module(path)}
    exec(compile(ast.Module(nodes, []), str(path), "exec"), space)
    return MethodSpec(slug, path, space["Config"], space.get("traits", Traits()))


def method_class(slug: str) -> type:
    """The method's class, really imported (with torch)."""
    path = _path(slug)
    return getattr(importlib.import_module(_module(path)), _method_node(path).name)


def title(half: Mapping[str, Any]) -> str:
    """What a recorded method block is called: a chain by its steps, `wanda+lora`."""
    return "+".join(half["steps"][name]["name"] for name in half["order"]) if half["name"] == CHAIN else str(half["name"])


def _path(slug: str) -> Path:
    if slug == CHAIN:
        return METHODS / "chain.py"
    if slug not in files():
        raise UserError(unknown("method", slug, files()))
    return files()[slug]


def _module(path: Path) -> str:
    return ".".join(("methods", *path.relative_to(METHODS).with_suffix("").parts))


def _method_node(path: Path) -> ast.ClassDef:
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    return next(node for node in classes if any(_is_config(child) for child in node.body))


def _is_config(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == "Config"


def _is_traits(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == "traits" for target in targets)
