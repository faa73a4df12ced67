"""What an edit of the sources or a failing disk makes of finished records, in a copy of the source tree whose command is really run."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.load import load
from harness.record import Record
from tests.killing import done
from tests.trees import Tree

GRIDS = "[{method: bitfit, seed: '0,1'}, {method: 'magnitude,random_mask'}]"
CELLS = [
    *["-m", f"hydra.sweeper.grids={GRIDS}", "model=tiny_bert", "task=glue/sst2", "task.max_length=32", "budget=smoke"],
    *["recipe.batch=16", "recipe.lr=1e-3", "hydra.launcher.workers=2"],
]
BITFIT, MASKS, TASK = "methods/sparse/bitfit.py", "methods/maths/masks.py", "conf/task/glue/sst2.yaml"
Edit = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Four finished cells; every test puts back what it edits."""
    tree = Tree(tmp_path_factory.mktemp("stale"))
    made = tree.run(*CELLS)
    assert made.returncode == 0, made.stdout + made.stderr
    return tree


@pytest.fixture
def edit(tree: Tree) -> Iterator[Edit]:
    """`Tree.edit`, taken back after the test."""
    before: dict[Path, str] = {}

    def change(path: str, old: str, new: str) -> None:
        before.setdefault(tree.root / path, (tree.root / path).read_text())
        tree.edit(path, old, new)

    yield change
    for path, text in before.items():
        path.write_text(text)


def stale(ended: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """Method and reason of each row of the summary's table of stale cells."""
    start = re.search(r"^stale +because", ended.stdout, re.MULTILINE)
    rows = ended.stdout[start.end() :].splitlines()[1:] if start else []
    return [(row.split()[0], re.split(r" {2,}", row.strip())[1]) for row in rows if " tiny_bert " in row]


def folder(record: Record, tree: Tree) -> Path:
    return tree.store.folder(record.cell)


def _checksum(folder: Path) -> str:
    return re.search('"checksum": "(.*)"|$', (folder / "record.json").read_text()).group(1)


def test_what_cannot_change_a_number_makes_nothing_stale(tree: Tree, edit: Edit) -> None:
    assert "4 cells: 0 to run, 4 already done" in tree.run(*CELLS).stdout
    for path in (BITFIT, MASKS):
        text = (tree.root / path).read_text()
        edit(path, text, "# A comment.\n" + text.replace('"""', '"""Other words. ', 1) + "\n\n# The end.\n")
    again = tree.run(*CELLS)
    assert "4 cells: 0 to run, 4 already done" in again.stdout
    assert again.returncode == 0


def test_an_edited_method_makes_its_records_stale_and_only_its(tree: Tree, edit: Edit) -> None:
    edit(BITFIT, "if not present:", "if len(present) == 0:")
    before = done(tree.store)
    again = tree.run(*CELLS)
    assert again.returncode == 1
    assert "4 cells: 0 to run, 2 already done, 0 skipped, 0 duplicates, 2 stale" in again.stdout
    assert "2 done, 0 skipped, 0 failed, 2 stale" in again.stdout
    assert stale(again) == [("bitfit", f"{BITFIT} has changed")] * 2
    kept = tree.run(*CELLS, "run.stale=keep")
    assert kept.returncode == 0
    assert "4 cells: 0 to run, 4 already done" in kept.stdout
    assert done(tree.store) == before


def test_edited_maths_makes_all_that_import_it_stale(tree: Tree, edit: Edit) -> None:
    edit(MASKS, "return n - round(sparsity * n)", "return n - int(sparsity * n)")
    again = tree.run(*CELLS)
    assert again.returncode == 1
    assert sorted(stale(again)) == [("magnitude", f"{MASKS} has changed"), ("random_mask", f"{MASKS} has changed")]


def test_a_new_version_of_a_protocol_makes_its_results_stale_and_no_other_cell(tree: Tree, edit: Edit) -> None:
    edit(TASK, "version: 1", "version: 2")
    again = tree.run(*CELLS)
    assert again.returncode == 1
    assert [why for _, why in stale(again)] == ["glue/sst2@heldout-32 is of version 1, now 2"] * 4


def test_damaged_records_are_named_kept_aside_and_made_anew(tree: Tree) -> None:
    half, flipped, other = (record for records in tree.records().values() for record in records if record.seed == 0)
    untouched = {cell: mark for cell, mark in done(tree.store).items() if cell not in (half.cell, flipped.cell, other.cell)}
    file = folder(half, tree) / "record.json"
    file.write_text(file.read_text()[:1000])
    file = folder(flipped, tree) / "record.json"
    value = f'"accuracy": {flipped.results[0].metrics["accuracy"]}'
    text = file.read_text()
    assert value in text
    file.write_text(text.replace(value, '"accuracy": 0.99'))
    (folder(other, tree) / other.results[0].predictions).unlink()
    shown = load(tree.store.root)
    assert set(shown["cell"]) == set(untouched)
    assert set(shown.attrs["damaged"]) == {half.cell, flipped.cell, other.cell}
    again = tree.run(*CELLS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 cells: 3 to run, 1 already done" in again.stdout
    assert f"{half.cell}/record.json is damaged" in again.stdout
    assert f"{flipped.cell}/record.json is damaged (its checksum does not fit)" in again.stdout
    assert f"{other.results[0].predictions} is missing" in again.stdout
    for record in (half, flipped, other):
        assert (tree.store.root / ".replaced" / f"{record.cell}-1" / "attempts" / "1.end.json").is_file()
        anew = tree.store.record(record.cell)
        assert [r.metrics for r in anew.results] == [r.metrics for r in record.results]
        assert tree.store.damage(anew) is None
    assert {cell: mark for cell, mark in done(tree.store).items() if cell in untouched} == untouched


def test_rerun_makes_stale_records_anew_and_resumes_nothing_of_other_sources(tree: Tree, edit: Edit) -> None:
    """One cell of the edited method has a record, the other was interrupted: it left a checkpoint that cannot even be read."""
    finished, interrupted = tree.records()["bitfit"]
    (folder(interrupted, tree) / "record.json").unlink()
    final = folder(interrupted, tree) / "checkpoints" / "main" / "final"
    final.mkdir(parents=True)
    (final / "COMPLETE").write_text("{}")
    others = {cell: mark for cell, mark in done(tree.store).items() if cell != finished.cell}
    edit(BITFIT, "if not present:", "if len(present) == 0:")
    again = tree.run(*CELLS, "run.stale=rerun")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "4 cells: 2 to run, 2 already done" in again.stdout
    anew = {record.cell: record for record in tree.records()["bitfit"]}
    assert set(anew) == {finished.cell, interrupted.cell}
    assert {record.sources[BITFIT] for record in anew.values()} != {finished.sources[BITFIT]}
    (replaced,) = [path for path in (tree.store.root / ".replaced").iterdir() if _checksum(path) == finished.checksum]
    assert replaced.name.startswith(finished.cell)
    assert sorted(path.name for path in (replaced / "attempts").iterdir()) == ["1.end.json", "1.json", "1.worker.json"]
    assert anew[finished.cell].attempts == 1
    assert (folder(interrupted, tree) / "superseded-1" / "checkpoints" / "main" / "final" / "COMPLETE").is_file()
    assert anew[interrupted.cell].results[0].metrics == interrupted.results[0].metrics
    assert {cell: mark for cell, mark in done(tree.store).items() if cell in others} == others
