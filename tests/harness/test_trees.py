"""The copied tree runs its own sources: an edit there changes what its command computes, and nothing here."""

from pathlib import Path

from tests.trees import ROOT, Tree

CONSTANT = '''
"""The untouched model under another name."""

from dataclasses import dataclass

from methods.baselines.none import NoMethod
from methods.spec import Traits


class Constant(NoMethod):
    """Counts to {n}."""

    @dataclass
    class Config:
        """No hyperparameters."""

    traits = Traits(families=("decoder",), trains=False, gradients=False)

    def measure(self, model, ctx):
        """A number."""
        return {{"n": {n}}}
'''


def test_a_tree_runs_its_own_methods(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.add_method("baselines", "constant", CONSTANT.format(n=1))
    tree.edit("methods/baselines/constant.py", '{"n": 1}', '{"n": 2}')
    done = tree.run("method=constant", "model=tiny_llama", "task=wikitext2", "task.context=16", "task.limit=2")
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tree.records()["constant"]
    assert record.measures == {"n": 2}
    assert not (ROOT / "methods" / "baselines" / "constant.py").exists()
