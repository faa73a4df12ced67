"""The cell id: golden values, what changes it and what must not, and the source hashes that decide staleness."""

import ast
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness import sourcetexts
from harness.config import BudgetConfig, Cell, ModelConfig, Recipe, RunConfig, TrackerConfig
from harness.identity import canonical_half, deterministic, digest, identify
from harness.resolve import Resolved
from harness.typed import build, plain
from methods.spec import Traits
from tasks.spec import ChoiceConfig, ClassificationConfig, PerplexityConfig

WEIGHTS, DATA = "sha256:00", {"train": "sha256:11", "validation": "sha256:22"}
MODEL = ModelConfig("m", "encoder", True, True, "folder", "some/path", None, 512, "a note", {"model_type": "bert"})
TASK = ClassificationConfig("glue/sst2", "classification", "glue/sst2", "accuracy", "official", "heldout", 128, None, 1)
BUDGET = BudgetConfig("short", 19200, 5)
RECIPE = Recipe(5e-4, None, 32, 3.0, "linear", 0.06, 0.01, 1.0, 0.9, 0.999, 1e-8)
TRACKER = TrackerConfig("none", "parebench", None, "runs/.wandb", 30.0)
RUN = RunConfig("runs", "assets", None, "cpu", 1, None, 32, 200, False, False, True, None, None, None, "report", [], [])


@dataclass
class Config:
    """A method's hyperparameters."""

    r: int
    alpha: float
    targets: list[str]


def make(traits: Traits = Traits(), run: RunConfig = RUN, **change: Any) -> Resolved:  # noqa: B008 (frozen)
    """A checked configuration with fixed values."""
    values = {
        "method": "lora", "method_config": Config(8, 16.0, ["q", "v"]), "model": MODEL, "task": TASK,
        "budget": BUDGET, "recipe": RECIPE, "seed": 0, "precision": "float32", "origins": {"lr": "paper"},
    }  # fmt: skip
    resolved = Resolved(Cell(**(values | change)), run, None, TRACKER)
    resolved.traits = traits
    return resolved


def cell_id(resolved: Resolved, weights: str = WEIGHTS, data: dict[str, str] = DATA) -> str:
    """The id under fixed fingerprints."""
    return digest(canonical_half(resolved, weights, data))


STILL = Traits(trains=False)
GOLDEN = {
    "classification": (make(), "c5449fb083fa"),
    "deterministic": (make(STILL, task=PerplexityConfig("wikitext2", "perplexity", "wikitext2", "test", 1024, 24, 1)), "030225309c08"),
    "choice": (make(STILL, task=ChoiceConfig("commonsense/piqa", "choice", "piqa", "accuracy", "validation", 300, 1)), "54aefaefaef7"),
    "seeded": (make(replace(STILL, randomness=("mask",)), seed=3), "004b04c8a276"),
}


@pytest.mark.parametrize(("resolved", "expected"), GOLDEN.values(), ids=GOLDEN.keys())
def test_golden_ids(resolved: Resolved, expected: str) -> None:
    assert cell_id(resolved) == expected, "ids of finished cells must not move: give a new field metadata {'added': default}"


@pytest.mark.parametrize(
    "other",
    [
        make(run=replace(RUN, store="elsewhere", device="cuda", threads=4, sweep="x", micro_batch=8, eval_batch=1)),
        make(origins={"lr": "override"}),
        make(model=replace(MODEL, id="another/path", note="another note", source="hub")),
        make(recipe=replace(RECIPE, lr=float("5.0e-4"), batch=32)),
        make(method_config=build(Config, {"r": "8", "alpha": 16, "targets": ["q", "v"]}, "method")),
        make(task=replace(TASK, version=2)),
    ],
    ids=["run half", "origins", "path and note", "spelling of a float", "16 and 16.0", "version, which marks results"],
)
def test_what_cannot_move_a_number_is_not_hashed(other: Resolved) -> None:
    assert cell_id(other) == cell_id(make())


@pytest.mark.parametrize(
    "other",
    [
        make(method="dora"),
        make(method_config=Config(4, 16.0, ["q", "v"])),
        make(method_config=Config(8, 16.0, ["v", "q"])),
        make(task=replace(TASK, limit=10)),
        make(budget=replace(BUDGET, examples=100)),
        make(recipe=replace(RECIPE, lr=1e-3)),
        make(seed=1),
        make(precision="bf16_autocast"),
        make(model=replace(MODEL, max_length=256)),
    ],
)
def test_what_may_move_a_number_is_hashed(other: Resolved) -> None:
    assert cell_id(other) != cell_id(make())


def test_weights_and_data_count_by_content() -> None:
    ids = {cell_id(make()), cell_id(make(), weights="sha256:01"), cell_id(make(), data={"train": "sha256:11", "validation": "sha256:23"})}
    assert len(ids) == 3


def test_the_seed_and_the_recipe_count_only_where_they_can_matter() -> None:
    assert cell_id(make(STILL, seed=1)) == cell_id(make(STILL, seed=0))
    assert cell_id(make(STILL, recipe=replace(RECIPE, lr=1.0))) == cell_id(make(STILL))
    drawing = replace(STILL, randomness=("mask",))
    assert cell_id(make(drawing, seed=1)) != cell_id(make(drawing, seed=0))
    assert deterministic(make(STILL)) and not deterministic(make(drawing)) and not deterministic(make())


def test_a_field_added_later_counts_only_when_it_is_used() -> None:
    added = [("new", str, field(default="old way", metadata={"added": "old way"}))]
    later = make_dataclass("Later", [("r", int), ("alpha", float), ("targets", list), *added])
    assert plain(later(8, 16.0, ["q", "v"])) == plain(Config(8, 16.0, ["q", "v"]))
    assert cell_id(make(method_config=later(8, 16.0, ["q", "v"]))) == cell_id(make())
    assert cell_id(make(method_config=later(8, 16.0, ["q", "v"], "new way"))) != cell_id(make())


def test_nan_has_no_identity() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"lr": float("nan")})


def test_splits_that_a_task_reads() -> None:
    assert TASK.reads() == {"train": (TASK.dataset, "train"), "validation": (TASK.dataset, "validation")}
    assert list(replace(TASK, rows="val-split", selection="last").reads()) == ["validation"]
    choices = ChoiceConfig("commonsense/piqa", "choice", "piqa", "accuracy", "validation", None, 1)
    assert choices.reads() == {"validation": ("piqa", "validation")}


def test_the_same_rows_give_the_same_id_wherever_they_lie(shared_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "glue" / "rte"
    copy.mkdir(parents=True)
    for split in ("train", "validation"):
        (copy / f"{split}.parquet").write_bytes((shared_data / "glue" / "rte" / f"{split}.parquet").read_bytes())
    task = replace(TASK, name="glue/rte", dataset="glue/rte")
    model = replace(MODEL, source="config")
    run = replace(RUN, assets=str(tmp_path / "assets"))
    here = replace(make(run=run, method="full_ft", task=task, model=model), data_dir=shared_data)
    there = replace(here, data_dir=tmp_path / "copy")
    assert identify(here).cell == identify(there).cell
    assert identify(here).sources.keys() == {"methods/baselines/full_ft.py"}


SOURCE = '''
"""A technique."""
from methods.maths import masks
import methods.spec


class Method:
    """It does this."""

    rank: int = 3
    """The rank."""

    def prepare(self, x):
        # a comment
        return x + 1
'''


def _hash(folder: Path, text: str) -> str:
    file = folder / f"{len(list(folder.iterdir()))}.py"
    file.write_text(text)
    return sourcetexts._parsed(file, file.stat().st_mtime_ns, file.stat().st_size)[0]


def test_documentation_does_not_make_a_record_stale_and_code_does(tmp_path: Path) -> None:
    base = _hash(tmp_path, SOURCE)
    documented = SOURCE.replace("It does this.", "It does that.").replace("The rank.", "r").replace("# a comment", "# another\n")
    assert _hash(tmp_path, documented) == base
    assert _hash(tmp_path, SOURCE.replace("x + 1", "(x  +  1)")) == base
    assert _hash(tmp_path, SOURCE.replace("x + 1", "x + 2")) != base
    assert _hash(tmp_path, SOURCE.replace("rank: int = 3", "rank: int = 4")) != base


def test_sources_follow_imports_but_not_the_interface() -> None:
    names = set(sourcetexts.sources("magnitude"))
    assert {"methods/prune/magnitude.py", "methods/prune/masked.py", "methods/maths/masks.py"} <= names
    assert not names & {"methods/base.py", "methods/spec.py"}


def test_texts_are_kept_once_and_have_the_hash_they_are_filed_under(tmp_path: Path) -> None:
    hashes = sourcetexts.sources("magnitude")
    sourcetexts.keep(hashes, tmp_path)
    sourcetexts.keep(hashes, tmp_path)
    kept = sorted((tmp_path / ".sources").iterdir())
    assert [file.stem for file in kept] == sorted(set(hashes.values()))
    for file in kept:
        ast.parse(file.read_text())
        assert sourcetexts._parsed(file, file.stat().st_mtime_ns, file.stat().st_size)[0] == file.stem
