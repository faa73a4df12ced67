"""The command line that makes a cell again composes the same cell, through the real composition."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from analysis.cli import main
from analysis.reproduce import found, reproduction
from harness import sourcetexts
from harness.commandline import PLACE, command_line, written
from harness.compose import compose
from harness.identity import identify
from harness.resolve import resolve
from harness.store import Store
from methods.spec import UserError
from tests.contract.toy import write_toy_data

from .simulate import record, scores, small_store

TINY = ["model=tiny_bert", "task=demo/sst2", "precision=float32"]
CHAIN = [
    "method=chain", "+method@method.steps.prune=wanda", "+method@method.steps.tune=full_ft", "method.order=[prune,tune]",
    "+method.shares.tune=1.0", "method.steps.prune.sparsity=0.3", "+method.steps.tune.recipe.lr=3e-4", "model=tiny_llama", "task=demo/sst2",
    "calibration.source=boolq_passages", "calibration.length=16",
]  # fmt: skip
CELLS = {
    "plain": [*TINY, "budget=smoke"],
    "settings": [*TINY, "method=lora", "method.r=3", "method.targets=[q,k,v]", "recipe.lr=1e-5", "recipe.schedule=cosine", "seed=12"],
    "task and budget": [*TINY, "budget.examples=77", "task.limit=5", "task.max_length=33", "precision=bf16_autocast", "method=bitfit"],
    "deterministic": ["method=none", "model=tiny_bert", "task=demo/sst2"],
    "matched": [*TINY, "method=magnitude", "method.sparsity=0.25", "method.scope=global", "recipe.head_lr=0.01"],
    "chain": CHAIN,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"))


def identity(overrides: Sequence[str], data: Path, store: Path):
    """What the real composition makes of a command line."""
    return identify(resolve(OmegaConf.create(compose([*overrides, f"data_dir={data}", f"run.store={store}"]))))


@pytest.mark.parametrize("overrides", CELLS.values(), ids=CELLS)
def test_the_command_line_gives_the_cell_that_was_recorded(overrides, toy, tmp_path):
    wanted = identity(overrides, toy, tmp_path)
    seed = wanted.canonical.get("seed", 0)
    line = command_line(json.loads(json.dumps(wanted.canonical)), seed)
    assert (line.cell, line.differs) == (wanted.cell, ())
    program, *words = shlex.split(line.text())
    assert program == "parebench" and identity(words, toy, tmp_path).cell == wanted.cell


def test_only_what_is_needed_is_typed(toy, tmp_path):
    line = command_line(identity([*TINY, "method=lora", "method.r=3", "method.alpha=16"], toy, tmp_path).canonical, 0)
    short = ["method=lora", "model=tiny_bert", "task=demo/sst2", "budget=short", "precision=float32", "seed=0", "method.r=3"]
    assert list(line.overrides) == short


def test_a_value_that_nobody_can_type_is_named(toy, tmp_path):
    half = json.loads(json.dumps(identity(TINY, toy, tmp_path).canonical))
    half["model"]["invented"] = 7
    half["task"].pop("limit")
    with pytest.raises(Exception, match=r"model\.invented"):
        command_line(half, 0)
    del half["model"]["invented"]
    assert command_line(half, 0).differs == ("task.limit",)


@pytest.mark.parametrize(
    "value", [None, True, 3, -2, 1e-05, 0.1, "plain", "a/b-c.d", "null", "true", "3", "1e3", "it's", 'say "x"', "a,b", "a=b", "${x}", "[x]",
              "back\\slash", "trailing\\", " spaced ", "", ["q", "k,v"], [1, None], [], "ümlaut", "a:b", "!x", "*", "a@b", "key:", "#no"],
)  # fmt: skip
def test_values_survive_the_command_line(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (typed,) = shlex.split(shlex.join([f"key={written(value)}"]))
    parsed = OverridesParser.create().parse_override(typed)
    assert parsed.value() == value and type(parsed.value()) is type(value)


@pytest.fixture
def store(toy, tmp_path) -> Path:
    """A SIMULATED record of a real configuration."""
    root, own = tmp_path / "runs", identity([*TINY, "method=lora", "method.r=3", "seed=5"], toy, tmp_path)
    made = record(small_store(root), "ab12cd34ef56", "lora", 5, scores("lora", 5, 0.8))
    numerics = {"python": "2.7.0", "packages": {"numpy": "0.0.1", "no-such-package": "1"}, "threads": 1, "device": "cpu", "harness": 1}
    data = {
        "train": {"source": "folder", "dataset": "demo/sst2", "split": "train", "rows": 9, "sha256": "5eed" * 16, "revision": "local:x"}
    }
    sources = {"methods/adapters/lora.py": "0" * 16} | dict(list(sourcetexts.sources("lora").items())[1:])
    Store(root).write(
        replace(made, identity=own.canonical, numerics=numerics, data=data, sources=own.sources | sources, cell="ab12cd34ef56")
    )
    return root


def test_it_says_what_made_the_record_and_what_differs_here(store, toy, tmp_path, capsys):
    assert main(["reproduce", "ab12", "--store", str(store)]) == 0
    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if line.startswith("parebench "))
    words = [word for word in shlex.split(command)[1:] if word != f"data_dir={PLACE}"]
    assert len(words) == len(shlex.split(command)) - 2 and {"run.threads=1", "run.device=cpu", "method.r=3", "seed=5"} <= set(words)
    assert identity(words, toy, tmp_path).canonical == Store(store).record("ab12cd34ef56").identity
    assert "numpy==0.0.1\n" in said and "# python 2.7.0" in said and f"sha256 {'5eed' * 16}" in said
    differs = said.partition("different here:")[2]
    assert "python is 3" in differs and "the record has 0.0.1" in differs and "no-such-package is not installed" in differs
    assert "methods/adapters/lora.py has changed (0000000000000000 -> " in differs
    assert "the command gives cell" in differs and "no override reaches the form of the identity" in differs


def test_the_beginning_of_an_id_is_enough_and_mistakes_are_sentences(store, capsys):
    assert found(Store(store), "ab12cd").cell == found(Store(store), "ab12cd34ef56").cell == "ab12cd34ef56"
    for prefix, words in (("lora", "may be lora0, lora1, lora2"), ("loar1", "did you mean lora1"), ("ab", "give more of the id")):
        assert main(["reproduce", prefix, "--store", str(store)]) == 2
        assert words in capsys.readouterr().err
    assert main(["reproduce", "x", "--store", str(store / "nothing")]) == 2
    with pytest.raises(UserError, match="cannot be said with today's configuration"):
        reproduction(Store(store).record("lora1"), Store(store))
