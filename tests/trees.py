"""A copy of the source tree that a test may edit: methods of its own, other sources, and the command run from it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.record import Record
from harness.store import Store
from tests.contract.toy import write_toy_data

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("conf", "harness", "methods", "tasks", "analysis", "sweeps")


class Tree:
    """`folder/tree/` holds the packages, `folder/runs/` the records, `folder/data/` small toy data in hub columns."""

    def __init__(self, folder: Path) -> None:
        self.root, self.data, self.assets = folder / "tree", folder / "data", folder / "assets"
        self.store = Store(folder / "runs")
        for name in PACKAGES:
            shutil.copytree(ROOT / name, self.root / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", self.root)
        write_toy_data(self.data)

    def add_method(self, family: str, slug: str, source: str, yaml: str = "recipes: []\n") -> None:
        """Write `methods/<family>/<slug>.py` and `conf/method/<slug>.yaml`; `yaml` without its `name`."""
        folder = self.root / "methods" / family
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / f"{slug}.py").write_text(source)
        (self.root / "conf" / "method" / f"{slug}.yaml").write_text(f"name: {slug}\n{yaml}")

    def add_task(self, name: str, yaml: str) -> None:
        """Write `conf/task/<name>.yaml`; `yaml` without its `name`."""
        (self.root / "conf" / "task" / f"{name}.yaml").write_text(f"name: {name}\n{yaml}")

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the one place of a file (relative to the tree) that reads `old`."""
        file = self.root / path
        text = file.read_text()
        assert text.count(old) == 1, f"{path} holds {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new))

    def run(self, *argv: str, module: str = "harness.cli") -> subprocess.CompletedProcess[str]:
        """`parebench` (or another module's command) with these arguments, from this tree and offline.

        `parebench` gets the toy data, the CPU, float32 and this tree's store in front; what is typed comes last and wins.
        """
        return self._call("-m", module, *(self._placed(argv) if module == "harness.cli" else argv))

    def python(self, code: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """`python -c code` with the arguments of a `parebench` command in `sys.argv[1:]`."""
        return self._call("-c", code, *self._placed(argv))

    def _placed(self, argv: Sequence[str]) -> list[str]:
        where = [
            f"data_dir={self.data}", f"run.store={self.store.root}", f"run.assets={self.assets}", "run.device=cpu",
            "run.threads=1", "precision=float32", "run.offline=true",
        ]  # fmt: skip
        typed = {override.partition("=")[0] for override in argv}
        return [*(default for default in where if default.partition("=")[0] not in typed), *argv]

    def _call(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *argv], cwd=self.root.parent, env=self.environment(), capture_output=True, text=True)

    def environment(self) -> dict[str, str]:
        """The variables under which Python finds this tree's packages before any other."""
        path = os.pathsep.join([str(self.root), str(self.root / "harness" / "plugins")])
        return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}

    def records(self) -> dict[str, list[Record]]:
        """The finished cells by method."""
        found: dict[str, list[Record]] = {}
        for record in self.store.records():
            found.setdefault(record.identity["method"]["name"], []).append(record)
        return found
