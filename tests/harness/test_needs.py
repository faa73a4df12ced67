"""Cells that need cells: what runs, in which order, what the student reads, and what it inherits."""

import json
from pathlib import Path

import pytest

from harness.record import Record
from tests.trees import Tree

STUDENT = '''
"""Toy distillation: the student also matches its teacher's logits."""

from dataclasses import dataclass

import torch

from methods.base import Method
from methods.spec import CellNames, CellSpec


class Student(Method):
    """Squared distance of the logits beside the task loss."""

    @dataclass
    class Config:
        """How much the teacher counts, and what the teacher is."""

        weight: float
        teacher: str
        change: list[str]

        def dependencies(self, cell: CellNames) -> tuple[CellSpec, ...]:
            """One teacher."""
            return (CellSpec(name="teacher", method=self.teacher, overrides=tuple(self.change)),)

    def prepare(self, model, ctx):
        """Read the teacher."""
        self.teacher = ctx.cell("teacher")
        return model

    def loss(self, model, batch, ctx):
        """Both parts."""
        out = model(**batch)
        with torch.no_grad():
            target = self.teacher(**batch).logits
        return out.loss + self.config.weight * (out.logits - target).square().mean()

    def measure(self, model, ctx):
        """Norm of the teacher's weights as they were read, and whether they were frozen."""
        parameters = list(self.teacher.parameters())
        return {
            "norm": sum(p.double().square().sum().item() for p in parameters),
            "frozen": not any(p.requires_grad for p in parameters) and not self.teacher.training,
        }
'''
YAML = "weight: 1.0\nteacher: full_ft\nchange: []\nrecipes:\n  - {when: {}, origin: default, source: test, values: {lr: 1.0e-3}}\n"
CELL = ("model=tiny_bert", "task=demo/sst2", "budget=smoke", "run.sweep=q")


def make_tree(folder: Path) -> Tree:
    """A tree with the method `student`."""
    tree = Tree(folder)
    tree.add_method("baselines", "student", STUDENT, YAML)
    return tree


def one(tree: Tree, method: str) -> Record:
    """The only record of a method."""
    (record,) = tree.records()[method]
    return record


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Two students, and a student of one of the students, asked for in one sweep that also lists the teacher without its weights."""
    tree = make_tree(tmp_path_factory.mktemp("finished"))
    grids = "[{method: full_ft}, {method: student, method.weight: '1.0,2.0'}, {method: student, method.teacher: student}]"
    done = tree.run("-m", *CELL, f"hydra.sweeper.grids={grids}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 cells: 4 to run, 0 already done, 0 skipped, 0 duplicates" in done.stdout
    return tree


def test_a_shared_teacher_runs_once_and_before_its_students(finished: Tree) -> None:
    teacher, students = one(finished, "full_ft"), finished.records()["student"]
    assert teacher.attempts == 1 and len(students) == 3
    ended = {cell: json.loads((finished.store.folder(cell) / "attempts/1.end.json").read_text())["ended"] for cell in _cells(finished)}
    taken = {cell: json.loads((finished.store.folder(cell) / "attempts/1.json").read_text())["taken"] for cell in _cells(finished)}
    for student in students:
        (need,) = student.dependencies.values()
        assert student.identity["dependencies"] == {"teacher": need["cell"]}
        assert taken[student.cell] >= ended[need["cell"]]


def _cells(tree: Tree) -> list[str]:
    return [record.cell for record in tree.store.records()]


def _grandchild(tree: Tree) -> tuple[Record, Record]:
    """The student of a student, and that student."""
    students = {record.cell: record for record in tree.records()["student"]}
    return next((s, students[n["cell"]]) for s in students.values() for n in s.dependencies.values() if n["cell"] in students)


def test_the_student_reads_the_weights_that_the_teacher_exported(finished: Tree) -> None:
    from safetensors.torch import load_file

    teacher = one(finished, "full_ft")
    exported = load_file(finished.store.folder(teacher.cell) / "model" / "model.safetensors")
    norm = sum(tensor.double().square().sum().item() for tensor in exported.values())
    for student in finished.records()["student"]:
        if student.identity["dependencies"]["teacher"] == teacher.cell:
            assert student.measures == {"norm": pytest.approx(norm, rel=1e-9), "frozen": True}
            assert student.dependencies["teacher"] == {"cell": teacher.cell, "checksum": teacher.checksum, "weights": teacher.weights}


def test_costs_are_inherited_exactly_and_once(finished: Tree) -> None:
    """The student of a student inherits both; 64 examples each, FLOPs and seconds as in their own records."""
    teacher = one(finished, "full_ft")
    grandchild, student = _grandchild(finished)
    expected = {
        name: {"cell": r.cell, "flops": r.costs["flops"]["training"], "seconds": r.seconds, "examples": 64}
        for name, r in (("teacher", student), ("teacher/teacher", teacher))
    }
    assert grandchild.costs["inherited"] == expected
    assert student.costs["inherited"] == {"teacher": expected["teacher/teacher"]}
    assert "inherited" not in teacher.costs
    assert student.costs["flops"]["training"] > teacher.costs["flops"]["training"] > 0  # its own count has the teacher's forward passes


def test_tables_tell_own_and_inherited_costs_apart(finished: Tree) -> None:
    from analysis.load import load

    frame = load(finished.store.root).set_index("cell")
    teacher = one(finished, "full_ft")
    grandchild, student = _grandchild(finished)
    assert frame.loc[teacher.cell, "inherited_flops"] == frame.loc[teacher.cell, "inherited_seconds"] == 0
    assert frame.loc[student.cell, "inherited_flops"] == frame.loc[teacher.cell, "flops"]
    assert frame.loc[grandchild.cell, "inherited_seconds"] == student.seconds + teacher.seconds
    assert frame.loc[student.cell, "seconds"] == student.seconds
    table = finished.run("table", "q", "--store", str(finished.store.root), module="analysis.cli")
    assert table.returncode == 0, table.stderr
    flops = f"{teacher.costs['flops']['training']:.3g}"
    assert f"made from teacher: 64 examples and {flops} FLOPs of training not in its own costs" in " ".join(table.stdout.split())


def test_one_command_for_one_cell_makes_its_teacher_and_remakes_lost_weights(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    done = tree.run("method=student", *CELL)
    assert done.returncode == 0, done.stdout + done.stderr
    teacher, student = one(tree, "full_ft"), one(tree, "student")
    model = tree.store.folder(teacher.cell) / "model"
    assert model.is_dir() and not (tree.store.folder(student.cell) / "model").exists()
    for file in model.iterdir():
        file.unlink()
    model.rmdir()
    assert tree.run("method=student", *CELL).returncode == 0  # a finished student needs no teacher
    assert not model.exists()
    assert tree.run("method=student", "seed=0", "method.weight=3.0", *CELL).returncode == 0
    again = one(tree, "full_ft")
    assert again.checksum != teacher.checksum and again.weights == teacher.weights and model.is_dir()
    assert "0 to run, 1 already done" in tree.run("-m", "method=student", *CELL).stdout  # equal weights: the first student is not stale


def test_an_edited_teacher_makes_its_student_stale(finished: Tree) -> None:
    line = "class FullFt(Method):"
    finished.edit("methods/baselines/full_ft.py", line, f"CHANGED = 1\n\n\n{line}")
    try:
        done = finished.run("-m", "method=full_ft,student", *CELL)
    finally:
        finished.edit("methods/baselines/full_ft.py", f"CHANGED = 1\n\n\n{line}", line)
    assert done.returncode == 1 and "2 cells: 0 to run, 0 already done, 0 skipped, 0 duplicates, 2 stale" in done.stdout
    teacher = one(finished, "full_ft")
    text = " ".join(done.stdout.split())
    assert f"teacher ({teacher.cell}) is stale: methods/baselines/full_ft.py has changed" in text


NEEDY = '''
"""A technique that needs other cells and is never run."""

from dataclasses import dataclass

from methods.base import Method
from methods.spec import CellNames, CellSpec


class Needy(Method):
    """Says what it needs."""

    @dataclass
    class Config:
        """A number that may shrink."""

        n: int

        def dependencies(self, cell: CellNames) -> tuple[CellSpec, ...]:
            """As the test says."""
            return {needs}
'''
NEEDY_YAML = "n: 3\nrecipes:\n  - {when: {}, origin: default, source: test, values: {lr: 1.0e-3}}\n"
CIRCLES = {
    "itself": ('method="needy"', 1, "a cell needs itself (needy -> needy)"),
    "itself by way of another": ('method="student"', 1, "a cell needs itself (needy -> student -> needy)"),
    "itself with a value that is there": ('method="needy", overrides=("seed=0",)', 1, "a cell needs itself (needy -> needy)"),
    "no end": ('method="needy", overrides=(f"seed={cell.seed + 1}",)', 1, "more than 16 cells need each other"),
    "one name twice": ('method="full_ft"', 2, "needy calls two of the cells that it needs a"),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A tree in which nothing has run; a student's teacher is `needy`."""
    made = make_tree(tmp_path_factory.mktemp("tree"))
    made.edit("conf/method/student.yaml", "teacher: full_ft", "teacher: needy")
    return made


@pytest.mark.parametrize(("need", "times", "sentence"), CIRCLES.values(), ids=CIRCLES.keys())
def test_circles_are_refused_before_anything_starts(need: str, times: int, sentence: str, tree: Tree) -> None:
    tree.add_method("baselines", "needy", NEEDY.replace("{needs}", f'{times} * (CellSpec(name="a", {need}),)'), NEEDY_YAML)
    done = tree.run("method=needy", *CELL)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not tree.store.root.exists()


def test_a_chain_that_ends_is_planned_from_its_end(tree: Tree) -> None:
    """n=3 needs n=2 needs n=1 needs a student of full_ft: each once, in this order, and what was typed for n=3 alone stays there."""
    end = 'CellSpec(name="a", method="student", overrides=("method.teacher=full_ft",))'
    step = 'CellSpec(name="a", method="needy", overrides=(f"method.n={self.n - 1}",))'
    tree.add_method("baselines", "needy", NEEDY.replace("{needs}", f"({step} if self.n > 1 else {end},)"), NEEDY_YAML)
    plan = "import json, sys\nfrom harness.compose import compose\nfrom harness.plan import check_all\nfrom omegaconf import OmegaConf\n"
    plan += "cells = check_all([sys.argv[1:]] * 2, lambda overrides: OmegaConf.create(compose(overrides)))\n"
    plan += "print(json.dumps([[c.resolved.cell.method, getattr(c.resolved.cell.method_config, 'n', 0), c.resolved.cell.recipe.batch,"
    plan += " c.resolved.run.keep_model, c.state] for c in cells]))"
    done = tree.python(plan, *CELL, "method=needy", "recipe.batch=16")
    assert done.returncode == 0, done.stderr
    needed = [["full_ft", 0, 32, True, "run"], ["student", 0, 32, True, "run"], *(["needy", n, 32, True, "run"] for n in (1, 2))]
    assert json.loads(done.stdout) == [*needed, ["needy", 3, 16, False, "run"], ["needy", 3, 16, False, "duplicate"]]


def test_a_failed_teacher_leaves_its_student_skipped_and_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    change = "method.change=['recipe.lr=1e30']"
    done = tree.run("-m", "method=student", change, *CELL)
    assert done.returncode == 1, done.stdout + done.stderr
    (outcome,) = [o for o in map(_outcome, tree.store.root.glob("*/outcome.json")) if o["status"] == "skipped"]
    assert outcome["lines"][0].startswith("it needs full_ft tiny_bert demo/sst2 seed 0 (")
    assert "which is not done: diverged" in outcome["lines"][0]
    again = tree.run("-m", "method=student", change, *CELL)
    assert "2 cells: 1 to run, 0 already done, 0 skipped, 0 duplicates, 1 waiting for retry" in again.stdout
    assert not list(tree.store.root.glob("*/record.json"))


def _outcome(path: Path) -> dict:
    return json.loads(path.read_text())


def test_an_impossible_teacher_makes_the_cell_impossible(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    done = tree.run("-m", "method=student", "method.teacher=none", *CELL)
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    assert "1 cells: 0 to run, 0 already done, 1 skipped" in text
    assert "it needs none tiny_bert demo/sst2" in text and "none works on decoder models" in text
    assert not tree.store.root.exists()
