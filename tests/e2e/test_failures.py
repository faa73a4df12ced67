"""Four ways to fail among eight cells: the others finish, each failure is named, and none runs again until it is asked for."""

import re
import subprocess
from pathlib import Path

import pytest

from harness import lease, outcome
from tests.trees import Tree

METHOD = '''
"""A method that fails."""

import signal
import time
from dataclasses import dataclass

import torch

from methods.base import Method
from methods.spec import Traits


class {name}(Method):
    """Fails in `prepare`."""

    @dataclass
    class Config:
        """No values."""

    traits = Traits()

    def prepare(self, model, ctx):
        """Never returns."""
        {body}
'''
RECIPE = "recipes: [{when: {}, origin: default, source: a test, values: {lr: 1.0e-3}}]\n"
BODIES = {
    "raiser": 'raise RuntimeError("there is no such layer")',
    "hog": "self.held = [torch.ones(25_000_000) for _ in range(100)]",
    # its process takes SIGTERM as any other program does, else the kill would come only after the grace for saving
    "sleeper": "signal.signal(signal.SIGTERM, signal.SIG_DFL) and time.sleep(600)",
}
GRIDS = "[{method: full_ft, seed: '0,1,2,3'}, {method: full_ft, recipe.lr: '1e30'}, {method: 'raiser,hog,sleeper'}]"
COMMAND = [
    *["-m", f"hydra.sweeper.grids={GRIDS}", "model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke"],
    *["run.memory_limit_gb=1.5", "run.time_limit_minutes=0.4", "hydra.launcher.workers=2"],
]
CLASSES = {"full_ft": "diverged", "raiser": "error", "hog": "oom", "sleeper": "timeout"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("failures"))
    for slug, body in BODIES.items():
        tree.add_method("baselines", slug, METHOD.format(name=slug.capitalize(), body=body), RECIPE)
    return tree


@pytest.fixture(scope="module")
def first(tree: Tree) -> subprocess.CompletedProcess[str]:
    return tree.run(*COMMAND)


def failures(tree: Tree) -> dict[str, Path]:
    """Folder of every failed cell by its method."""
    found = {outcome.read(path.parent).label.split()[0]: path.parent for path in tree.store.root.glob("*/outcome.json")}
    assert len(found) == 4
    return found


def rows(output: str) -> dict[str, str]:
    """Lines of the summary's table of failures by method."""
    table = output[re.search("^failed +how +last line", output, re.MULTILINE).start() :]
    return {line.split()[0]: line for line in table.splitlines()[1:]}


def test_the_others_finish_and_the_summary_names_each_failure(first: subprocess.CompletedProcess[str], tree: Tree) -> None:
    assert first.returncode == 1, first.stdout + first.stderr
    assert "8 cells: 8 to run" in first.stdout
    assert "4 done, 0 skipped, 4 failed" in first.stdout
    assert [len(records) for records in tree.records().values()] == [4]
    assert {method: outcome.read(folder).status for method, folder in failures(tree).items()} == CLASSES
    table = rows(first.stdout)
    assert all(f" {status} " in table[method] for method, status in CLASSES.items())
    assert "RuntimeError: there is no such layer" in table["raiser"]
    assert "Diverged: " in table["full_ft"]
    assert "run.time_limit_minutes=0.4" in table["sleeper"]
    for method, folder in failures(tree).items():
        assert str(folder / "log.txt") in table[method]


def test_the_same_command_again_runs_none_of_them(first: subprocess.CompletedProcess[str], tree: Tree) -> None:
    again = tree.run(*COMMAND)
    assert again.returncode == 1
    assert "8 cells: 0 to run, 4 already done, 0 skipped, 0 duplicates, 4 waiting for retry" in again.stdout
    assert [lease.latest(folder) for folder in failures(tree).values()] == [1, 1, 1, 1]
    assert set(rows(again.stdout)) >= set(CLASSES)


def test_retry_runs_the_class_that_is_asked_for(first: subprocess.CompletedProcess[str], tree: Tree) -> None:
    again = tree.run(*COMMAND, "run.retry=[oom]")
    assert again.returncode == 1
    assert "8 cells: 1 to run, 4 already done, 0 skipped, 0 duplicates, 3 waiting for retry" in again.stdout
    assert {method: lease.latest(folder) for method, folder in failures(tree).items()} == {**dict.fromkeys(CLASSES, 1), "hog": 2}
