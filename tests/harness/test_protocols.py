"""Results per protocol: added to a finished cell without training, reproduced where the weights are gone, marked by version."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from harness.record import Record
from harness.store import Store
from tests.trees import Tree

PERPLEXITY = "kind: perplexity\ndataset: wikitext2\nsplit: test\ncontext: {context}\nlimit: 4\nversion: 1\n"
CHOICE = "kind: choice\ndataset: boolq\nsplit: train\nmetric: accuracy\nlimit: 4\ntrain: null\nversion: 1\n"
CELL = ("method=magnitude", "method.retrain=false", "model=tiny_llama", "task=ppl16")
MORE = "protocols=[ppl24,ppl32]"
IDS = ["wikitext2@ppl-16[:4]", "wikitext2@ppl-24[:4]", "wikitext2@ppl-32[:4]"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree with perplexities of three window lengths."""
    made = Tree(tmp_path_factory.mktemp("protocols"))
    for context in (16, 24, 32, 512):
        made.add_task(f"ppl{context}", PERPLEXITY.format(context=context))
    made.add_task("first4", CHOICE)
    return made


def run(tree: Tree, store: str, *argv: str, code: int = 0) -> tuple[Record, str]:
    """The cell in a store of its own: its record and what was printed."""
    folder = tree.root.parent / store
    done = tree.run(*CELL, f"run.store={folder}", *argv)
    assert done.returncode == code, done.stdout + done.stderr
    return next(Store(folder).records(), None), " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def whole(tree: Tree) -> Record:
    """The cell that was asked for all protocols from the start."""
    return run(tree, "whole", MORE)[0]


@pytest.fixture(scope="module")
def first(tree: Tree) -> Record:
    """The cell with its own protocol alone; its weights were kept."""
    return run(tree, "added", "run.keep_model=true")[0]


def files(folder: Path) -> dict[str, int]:
    """Modification time of every file of a cell but its record, its log and its attempts."""
    names = {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    return {name: time for name, time in names.items() if name not in ("record.json", "log.txt") and not name.startswith("attempts/")}


@pytest.fixture(scope="module")
def added(tree: Tree, first: Record) -> tuple[Record, dict, str]:
    """The same cell after two protocols were added; its files before; the text of its record's first result before."""
    folder = tree.root.parent / "added" / first.cell
    before, text = files(folder), json.dumps(json.loads((folder / "record.json").read_text())["results"][0])
    return run(tree, "added", MORE)[0], before, text


def test_an_added_protocol_equals_one_from_the_start(tree: Tree, whole: Record, added: tuple) -> None:
    record = added[0]
    assert record.cell == whole.cell
    for one in (record, whole):
        assert [r.protocol for r in one.results] == IDS and [r.task for r in one.results] == ["ppl16", "ppl24", "ppl32"]
    assert [r.metrics for r in record.results] == [r.metrics for r in whole.results]
    assert len({r.metrics["perplexity"] for r in whole.results}) == 3
    assert record.data == whole.data and record.data["ppl24:evaluation"]["dataset"] == "wikitext2"
    assert record.protocols == whole.protocols and record.protocols["ppl24"]["context"] == 24
    for mine, theirs in zip(record.results, whole.results, strict=True):
        tables = [pd.read_parquet(tree.root.parent / s / record.cell / r.predictions) for s, r in (("added", mine), ("whole", theirs))]
        assert tables[0].equals(tables[1]) and mine.n == 4


def test_a_cell_that_was_measured_on_the_first_rows_of_a_split_is_done(tree: Tree) -> None:
    record, _ = run(tree, "rows", "protocols=[first4]")
    own, choice = record.results
    assert choice.rows["rows"] == 4 and choice.rows["sha256"] != choice.rows["whole"] and "whole" not in own.rows
    assert "1 already done" in run(tree, "rows", "-m", "protocols=[first4]")[1]


def test_adding_touches_nothing_that_was_there(tree: Tree, first: Record, added: tuple) -> None:
    record, before, text = added
    folder = tree.root.parent / "added" / record.cell
    after = files(folder)
    assert {name: after[name] for name in before} == before
    new = {f"evals/wikitext2@ppl-{context}_4_.main.{kind}" for context in (24, 32) for kind in ("json", "parquet")}
    assert after.keys() - before.keys() == new
    assert json.dumps(json.loads((folder / "record.json").read_text())["results"][0]) == text
    assert (record.phases, record.seconds, record.weights, record.costs) == (first.phases, first.seconds, first.weights, first.costs)
    assert record.attempts == 2 and first.attempts == 1
    assert set(record.files) >= {r.predictions for r in record.results} and Store(folder.parent).damage(record) is None
    assert "1 already done" in run(tree, "added", "-m", MORE)[1]


def copy(tree: Tree, added: tuple, name: str, *, weights: bool) -> Record:
    """A store of its own with the finished cell of three protocols."""
    folder = tree.root.parent / name
    shutil.copytree(tree.root.parent / "added", folder)
    if not weights:
        shutil.rmtree(folder / added[0].cell / "model")
    return Store(folder).record(added[0].cell)


def tampered(tree: Tree, added: tuple, name: str) -> tuple[Record, float]:
    """The same without its weights, and with another perplexity in its record; the true one."""
    record = copy(tree, added, name, weights=False)
    value = record.results[1].metrics["perplexity"]
    record.results[1].metrics["perplexity"] = value + 1e-9
    Store(tree.root.parent / name).write(record)
    return record, value


def test_a_cell_without_its_weights_is_remade_and_reproduces(tree: Tree, added: tuple) -> None:
    """Also the protocols that it was measured on before and that are not asked for now."""
    was = copy(tree, added, "remade", weights=False)
    again, _ = run(tree, "remade", "run.keep_model=true")
    assert again.remade == {"replaces": f"{was.cell}-1", "differs": []}
    assert sorted(r.protocol for r in again.results) == IDS and again.protocols == was.protocols
    assert {r.protocol: r.metrics for r in again.results} == {r.protocol: r.metrics for r in was.results}
    assert (tree.root.parent / "remade" / was.cell / "model").is_dir()
    assert Store(tree.root.parent / "remade" / ".replaced").record(f"{was.cell}-1").checksum == was.checksum


def test_a_remade_cell_that_does_not_reproduce_is_an_error_until_forced(tree: Tree, added: tuple) -> None:
    was, value = tampered(tree, added, "tampered")
    folder = tree.root.parent / "tampered"
    assert run(tree, "tampered", "run.keep_model=true", code=1)[0] is None
    outcome = json.loads((folder / was.cell / "outcome.json").read_text())
    sentence = f"cell {was.cell} was made again and does not reproduce {IDS[1]} (main): perplexity was {value + 1e-9}, now {value};"
    assert outcome["status"] == "error" and sentence in outcome["lines"][-1]
    assert Store(folder / ".replaced").record(f"{was.cell}-1").results[1].metrics["perplexity"] == value + 1e-9
    forced, _ = run(tree, "tampered", MORE, "run.force=true")
    assert forced.results[1].metrics["perplexity"] == value and forced.remade == {}


def test_under_other_numerics_a_difference_is_noted(tree: Tree, added: tuple) -> None:
    was, _ = tampered(tree, added, "threads")
    again, _ = run(tree, "threads", "run.keep_model=true", "run.threads=2")
    assert again.remade == {"replaces": f"{was.cell}-1", "differs": ["threads"]}


def test_a_new_version_marks_the_results_of_its_protocol_and_trains_nothing(tree: Tree, added: tuple) -> None:
    record = copy(tree, added, "version", weights=True)
    tree.edit("conf/task/ppl24.yaml", "version: 1", "version: 2")
    try:
        code = "import sys; from harness.store import Store; from harness import stale; s = Store(sys.argv[-1])\n"
        code += "for r in s.records(): print(*stale.reasons(r, s), sep='\\n')"
        found = tree.python(code, str(tree.root.parent / "version"))
        assert found.stdout.splitlines() == ["wikitext2@ppl-24[:4] is of version 1, now 2"], found.stderr
        assert "1 already done" in run(tree, "version", "-m")[1]
        again, _ = run(tree, "version", "protocols=[ppl24]")
    finally:
        tree.edit("conf/task/ppl24.yaml", "version: 2", "version: 1")
    assert {r.protocol: r.version for r in again.results} == {IDS[0]: 1, IDS[1]: 2, IDS[2]: 1}
    mine, theirs = ({r.protocol: r for r in one.results} for one in (again, record))
    assert mine[IDS[0]] == theirs[IDS[0]] and mine[IDS[2]] == theirs[IDS[2]]
    assert mine[IDS[1]].predictions != theirs[IDS[1]].predictions and mine[IDS[1]].metrics == theirs[IDS[1]].metrics
    assert again.weights == record.weights and again.attempts == record.attempts + 1
    assert Store(tree.root.parent / "version").damage(again) is None


def test_weights_that_were_changed_are_not_measured(tree: Tree, added: tuple) -> None:
    record = copy(tree, added, "changed", weights=True)
    record.results = record.results[:1]
    Store(tree.root.parent / "changed").write(record)
    file = tree.root.parent / "changed" / record.cell / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    after, out = run(tree, "changed", MORE, code=2)
    assert "holds other weights than" in out and after == record


REFUSED = {
    "own": (["protocols=[ppl16]"], "protocols=ppl16 is the cell's own task, which is measured anyway; leave it out"),
    "unknown": (["protocols=[wikitext3]"], "protocols=wikitext3 is unknown; did you mean wikitext2?"),
    "no list": (["protocols=ppl24"], "protocols=ppl24 is not allowed; allowed: a list [a,b] where each is text"),
    "classifier": (["protocols=[demo/sst2]"], "protocol demo/sst2 needs a head that was trained for it"),
    "encoder": (
        ["model=tiny_bert", "method.retrain=true", "task=demo/sst2", "protocols=[ppl24]"],
        "protocol ppl24 needs a language model and under task demo/sst2 tiny_bert is a classifier; leave it out",
    ),
    "too long": (["protocols=[ppl512]"], "protocol ppl512 reads 512 tokens at once and tiny_llama takes 128"),
    "no rows": (["protocols=[commonsense/piqa]"], "piqa validation is not here"),
    "typed block": (["+protocol_tasks.a=1"], "protocol_tasks is not a key to type"),
}


@pytest.mark.parametrize(("argv", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_protocols_are_refused_before_anything_starts(argv: list[str], sentence: str, tree: Tree) -> None:
    assert sentence in run(tree, "refused", *argv, code=2)[1]
    assert not (tree.root.parent / "refused").exists()


def test_the_same_cell_twice_in_one_sweep_is_measured_on_all_that_was_asked(tree: Tree) -> None:
    record, out = run(tree, "twice", "-m", "hydra.sweeper.grids=[{protocols: '[ppl24]'}, {protocols: '[ppl32]'}]")
    assert "2 cells: 1 to run, 0 already done, 0 skipped, 1 duplicates" in out
    assert [r.protocol for r in record.results] == IDS
