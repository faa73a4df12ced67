"""`forgetting`: the loaded model is measured before the method touches it, the finished one after; nothing else changes."""

import shutil

import pandas as pd
import pytest

from harness.record import Record
from harness.store import Store
from tests.trees import Tree

PERPLEXITY = "kind: perplexity\ndataset: wikitext2\nsplit: test\ncontext: {context}\nlimit: 4\nversion: 1\n"
CELL = ("method=magnitude", "method.retrain=false", "model=tiny_llama", "task=ppl16")
ASKED = "forgetting=[ppl24]"
ID = "wikitext2@ppl-24[:4]"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    made = Tree(tmp_path_factory.mktemp("forgetting"))
    for context in (16, 24):
        made.add_task(f"ppl{context}", PERPLEXITY.format(context=context))
    return made


def run(tree: Tree, store: str, *argv: str, code: int = 0) -> tuple[Record, str]:
    """The cell in a store of its own: its record and what was printed."""
    folder = tree.root.parent / store
    done = tree.run(*CELL, f"run.store={folder}", *argv)
    assert done.returncode == code, done.stdout + done.stderr
    return next(Store(folder).records(), None), " ".join((done.stdout + done.stderr).split())


def results(record: Record) -> dict[tuple[str, str], dict[str, float]]:
    return {(r.protocol, r.variant): r.metrics for r in record.results}


@pytest.fixture(scope="module")
def whole(tree: Tree) -> Record:
    """Asked for from the start."""
    return run(tree, "whole", ASKED)[0]


@pytest.fixture(scope="module")
def added(tree: Tree) -> tuple[Record, Record]:
    """Without it, and after it was asked for of the finished cell."""
    first = run(tree, "added", "run.keep_model=true")[0]
    return first, run(tree, "added", ASKED)[0]


def test_before_is_the_model_as_loaded_and_after_the_finished_one(tree: Tree, whole: Record) -> None:
    done = tree.run("method=none", *CELL[2:], "protocols=[ppl24]", f"run.store={tree.root.parent / 'untouched'}")
    assert done.returncode == 0, done.stdout + done.stderr
    untouched = next(Store(tree.root.parent / "untouched").records())
    found = results(whole)
    assert found[ID, "before"] == results(untouched)[ID, "main"] != found[ID, "main"]
    assert {key[1] for key in found if key[0] != ID} == {"main"}
    file = next(r for r in whole.results if r.variant == "before")
    assert len(pd.read_parquet(tree.root.parent / "whole" / whole.cell / file.predictions)) == file.n == 4


def test_it_changes_neither_the_id_nor_the_other_numbers(whole: Record, added: tuple) -> None:
    first, _ = added
    assert first.cell == whole.cell and first.identity == whole.identity and first.weights == whole.weights
    (own,) = results(first).values()
    assert results(whole)["wikitext2@ppl-16[:4]", "main"] == own


def test_added_later_it_gives_both_halves_without_training(tree: Tree, whole: Record, added: tuple) -> None:
    first, later = added
    assert results(later) == results(whole) and len(results(first)) == 1
    assert later.weights == first.weights and later.phases == first.phases and later.seconds == first.seconds
    assert "1 already done" in run(tree, "added", "-m", ASKED)[1]
    assert Store(tree.root.parent / "added").damage(later) is None


def test_a_cell_that_is_made_again_must_reproduce_what_was_measured_before(tree: Tree, whole: Record) -> None:
    shutil.copytree(tree.root.parent / "whole", tree.root.parent / "again")
    record, _ = run(tree, "again", "run.keep_model=true")
    assert record.remade["differs"] == [] and results(record) == results(whole)


REFUSED = {
    "own": (["forgetting=[ppl16]"], "forgetting=ppl16 is the cell's own task, which is measured anyway; leave it out"),
    "unknown": (["forgetting=[wikitext3]"], "forgetting=wikitext3 is unknown; did you mean wikitext2?"),
    "classifier": (
        ["model=tiny_bert", "method.retrain=true", "task=demo/sst2", ASKED],
        "protocol ppl24 needs a language model and under task demo/sst2 tiny_bert is a classifier; leave it out",
    ),
}


@pytest.mark.parametrize(("argv", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_names_are_refused_before_anything_starts(argv: list[str], sentence: str, tree: Tree) -> None:
    assert sentence in run(tree, "refused", *argv, code=2)[1]
    assert not (tree.root.parent / "refused").exists()
