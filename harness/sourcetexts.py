"""The source texts that a method consists of, by hash: what decides whether a stored record is stale. Torch-free."""

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.registry import CHAIN, METHODS, load_spec
from harness.store import write_atomically

ROOT = METHODS.parent
INTERFACE = ("methods.base", "methods.spec")
"""Not counted: `harness.NUMERICS` stands for the machine and its interface."""
KEPT = ".sources"


def sources(slug: str) -> dict[str, str]:
    """Path relative to the package root -> hash, for the method's file and the `methods.*` files that it imports, transitively.

    The hash is over the syntax tree without docstrings: comments, layout and documentation do not make a record stale.
    """
    seen: dict[Path, str] = {}
    todo = [load_spec(slug).path]
    while todo:
        path = todo.pop()
        if path not in seen:
            status = path.stat()
            seen[path], imported = _parsed(path, status.st_mtime_ns, status.st_size)
            todo += imported
    return {path.relative_to(ROOT).as_posix(): seen[path] for path in sorted(seen)}


def of_method(half: Mapping[str, Any]) -> dict[str, str]:
    """`sources` of a recorded method block (`identity["method"]`): for a chain those of all its steps."""
    parts = [sources(step["name"]) for step in half["steps"].values()] if half["name"] == CHAIN else []
    merged = {name: digest for part in [sources(half["name"]), *parts] for name, digest in part.items()}
    return {name: merged[name] for name in sorted(merged)}


def keep(hashes: dict[str, str], store: Path) -> None:
    """Keep each text once under `<store>/.sources/<hash>.py`, so that a stale record can show what has changed."""
    for name, digest in hashes.items():
        target = store / KEPT / f"{digest}.py"
        if not target.exists():
            write_atomically(target, (ROOT / name).read_text())


def kept(digest: str | None, store: Path) -> str:
    """The text that `keep` kept under a hash; empty where there is none."""
    path = store / KEPT / f"{digest}.py"
    return path.read_text() if digest and path.is_file() else ""


def text(name: str) -> str:
    """Today's text of a source file, by its path relative to the package root."""
    return (ROOT / name).read_text()


@cache
def _parsed(path: Path, changed: int, size: int) -> tuple[str, tuple[Path, ...]]:
    """Hash and imported files of one source; a file that is edited while a sweep runs is read again."""
    tree = ast.parse(path.read_text())
    modules = dict.fromkeys(module for module in _imports(tree) if module.startswith("methods.") and not module.startswith(INTERFACE))
    files = tuple(file for module in modules if (file := _file(module)))
    return hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()[:16], files


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Drops every bare string: module, class and function docstrings, and those under a field or a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [child for child in node.body if not _is_text(child)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
