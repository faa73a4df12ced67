"""Imports run one way: analysis reads records, methods know their interface, tasks know nothing of methods."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHODS_MAY = {"methods", "torch", "transformers", "peft", "numpy", "scipy", "math"}
TORCH_FREE = [
    *(
        "harness.cli",
        "harness.resolve",
        "harness.external",
        "harness.identity",
        "harness.compat",
        "harness.plan",
        "harness.matching",
        "harness.search",
        "harness.job",
        "harness.awaited",
        "harness.store",
        "tasks.spec",
    ),
    *("harness.limits", "harness.memory", "harness.slots", "harness.ranks"),
    *("harness.sweep_cli", "harness.live", "harness.preview"),
    *("harness.mirror", "harness.sync", "harness.tracking"),
    *("harness.sourcetexts", "harness.stale", "harness.commandline", "harness.exampletexts"),
]


def imported(path: Path, top_only: bool = False) -> set[str]:
    """Full names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def files(folder: str) -> list[Path]:
    """Python files below a top-level folder."""
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("methods"), ids=lambda p: str(p.relative_to(ROOT)))
def test_methods_import_only_their_interface_and_tensor_libraries(path: Path) -> None:
    standard = set(sys.stdlib_module_names) - {"os", "pathlib", "subprocess", "shutil", "tempfile", "socket", "urllib", "pickle"}
    assert {name.split(".")[0] for name in imported(path)} <= METHODS_MAY | standard


@pytest.mark.parametrize("path", files("tasks"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tasks_know_nothing_of_methods(path: Path) -> None:
    assert {n for n in imported(path) if n.startswith("methods")} <= {"methods.spec"}
    assert not {n for n in imported(path) if n.startswith("analysis")}


@pytest.mark.parametrize("path", files("analysis"), ids=lambda p: str(p.relative_to(ROOT)))
def test_analysis_reads_records_only(path: Path) -> None:
    assert not {n for n in imported(path) if n.split(".")[0] in ("torch", "transformers", "peft", "tasks")}
    harness = {n for n in imported(path) if n.startswith("harness")}
    assert harness <= {
        "harness",
        "harness.store",
        "harness.record",
        "harness.registry",
        "harness.params",
        "harness.nearmiss",
        "harness.trackkeys",
        "harness.typed",
        "harness.cli",
        "harness.sourcetexts",
        "harness.stale",
        "harness.commandline",
        "harness.exampletexts",
    }


@pytest.mark.parametrize("path", files("harness"), ids=lambda p: str(p.relative_to(ROOT)))
def test_harness_never_imports_analysis(path: Path) -> None:
    assert not {n for n in imported(path) if n.split(".")[0] == "analysis"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_configuration_is_torch_free(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
