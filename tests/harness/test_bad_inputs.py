"""Every mistake is answered by one sentence on stderr and exit code 2, and nothing is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import run

DECODER = "model=tiny_llama"
ENCODER = "model=tiny_bert"
BAD = {
    "misspelt method": ("method=loar", "method=loar is unknown; did you mean lora?"),
    "misspelt method key": ("method=lora method.rr=4", "method.rr is unknown; did you mean r?"),
    "added method key": ("method=lora +method.rank=4", "method.rank is unknown"),
    "misspelt model": ("model=minilmm", "did you mean minilm?"),
    "misspelt task": ("task=glue/sst", "did you mean glue/sst2?"),
    "misspelt dataset": ("task.dataset=glue/sst", "task.dataset=glue/sst is unknown; did you mean glue/sst2?"),
    "unknown budget": ("budget=shrt", "did you mean short?"),
    "misspelt sweep": ("+sweeps=quickstrat", "did you mean quickstart?"),
    "misspelt sweep in a multirun": ("-m +sweeps=quickstrat", "did you mean quickstart?"),
    "wrong type": ("method=lora method.r=eight", "method.r=eight is not allowed; allowed: an integer"),
    "not a number": ("method=lora method.alpha=nan", "method.alpha=nan is not allowed"),
    "negative sparsity": ("method=magnitude method.sparsity=-0.1", "method.sparsity=-0.1 is out of range"),
    "sparsity above one": ("method=magnitude method.sparsity=1.5", "method.sparsity=1.5 is out of range"),
    "unknown role": (f"{ENCODER} method=lora method.targets=[x]", "method.targets=x is not allowed"),
    "a list that is none": ("method=lora method.targets=q", "allowed: a list [a,b]"),
    "method without biases to train": (f"{DECODER} method=bitfit", "tiny_llama has none"),
    "decoder-only method on an encoder": (f"{ENCODER} method=none", "is of family encoder"),
    "a head that nothing trains": (f"{DECODER} method=none", "the task needs a trained head"),
    "a task without training form": (f"{DECODER} method=full_ft task=commonsense/piqa", "has no training form"),
    "context beyond the model": (f"{DECODER} method=none task=wikitext2 task.context=4096", "task.context=4096 is longer"),
    "negative context": (f"{DECODER} method=none task=wikitext2 task.context=-1", "task.context=-1 is out of range"),
    "unknown selection": ("task.selection=best", "task.selection=best is not allowed"),
    "unknown top-level key": ("+foo=1", "the top-level key foo is unknown"),
    "misspelt top-level key": ("sead=1", "the key sead is unknown; did you mean seed?"),
    "missing data folder": ("data_dir=nowhere", "data_dir=nowhere is no folder"),
    "unknown precision": ("precision=fp8", "precision=fp8 is not allowed; allowed: float32"),
    "unknown device": ("run.device=tpu", "run.device=tpu is not allowed; allowed: auto"),
    "negative seed": ("seed=-1", "seed=-1 is out of range"),
    "seed that is no number": ("seed=abc", "seed=abc is not allowed; allowed: an integer"),
    "unknown schedule": ("recipe.schedule=linea", "recipe.schedule=linea is not allowed"),
    "misspelt recipe key": ("recipe.learning_rate=1", "recipe.learning_rate is unknown"),
    "negative learning rate": ("recipe.lr=-1", "recipe.lr=-1.0 is out of range"),
    "micro batch that does not divide": ("run.micro_batch=7", "does not divide recipe.batch=32"),
    "a block replaced by a word": ("run=fast", "run=fast is not a block of keys"),
    "override that cannot be read": ("method=[lora", "'method=[lora' cannot be read"),
    "override without a key": ("=3", "type parebench --help"),
    "several values without -m": ("seed=0,1", "type parebench -m to run each"),
    "unknown flag": ("--fast", "unrecognized arguments: --fast"),
    "missing config folder": ("--config-dir nowhere", "give --config-dir an existing folder"),
    "misspelt launcher": ("hydra/launcher=pol", "did you mean pool?"),
    "misspelt launcher key": ("hydra.launcher.wrkers=2", "did you mean workers?"),
    "a grid with one bad cell": (f"-m {ENCODER} method=lora method.r=4,0", "method.r=0 is out of range"),
    "a grid over methods of which one lacks a key": (f"-m {ENCODER} method=lora,bitfit method.r=4", "method.r is unknown"),
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "expected"), BAD.values(), ids=BAD.keys())
def test_one_sentence_and_exit_code_2(line: str, expected: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(line.split())
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("parebench: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert expected in err
    assert list(elsewhere.iterdir()) == []


def test_a_bad_cell_of_a_grid_is_named_and_none_starts(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-m", ENCODER, "method=lora", "method.r=4,8", "seed=0,x"]) == 2
    err = capsys.readouterr().err
    assert "seed=x" in err and "method.r=4" in err and "no cell was started" in err
    assert list(elsewhere.iterdir()) == []


def test_a_store_that_is_a_file_is_refused(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "file").touch()
    line = ["model=tiny_llama", "method=none", "task=wikitext2", "task.context=64"]
    assert run([*line, "run.store=file"]) == 2
    assert "run.store=file is a file" in capsys.readouterr().err


def _cut(source: Path, target: Path) -> None:
    """The first half of a file."""
    content = source.read_bytes()
    target.write_bytes(content[: len(content) // 2])


def test_a_truncated_parquet_is_found_before_the_cell_starts(
    shared_data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = elsewhere / "data" / "glue" / "sst2"
    folder.mkdir(parents=True)
    shutil.copy(shared_data / "glue" / "sst2" / "train.parquet", folder)
    _cut(shared_data / "glue" / "sst2" / "validation.parquet", folder / "validation.parquet")
    assert run([ENCODER, "method=full_ft", "data_dir=data", "run.assets=none"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "validation.parquet cannot be read" in err
    assert not (elsewhere / "runs").exists()


def test_more_accelerators_than_there_are_is_refused(
    shared_data: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    line = [ENCODER, "method=full_ft", f"data_dir={shared_data}", "run.assets=none", "run.gpus=2"]
    for mode in ([], ["-m"]):
        assert run([*mode, *line]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "run.gpus=2 is more than the 1 visible here (0); give run.gpus=1 or less" in err
        assert not list(elsewhere.glob("runs/*"))


def test_data_that_is_nowhere_is_found_before_the_cell_starts(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "data").mkdir()
    assert run([ENCODER, "method=full_ft", "task=glue/cola", "data_dir=data", "run.assets=none", "run.offline=true"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "glue/cola" in err
    assert not (elsewhere / "runs").exists()


@pytest.mark.parametrize("line", ["method=loar", "method=lora method.r=eight", "-m method=lora seed=0,x"])
def test_the_real_command_says_the_same(line: str, elsewhere: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", *line.split()]
    root = str(Path(__file__).resolve().parents[2])
    environment = {"PATH": "", "PYTHONPATH": f"{root}:{root}/harness/plugins"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("parebench: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(elsewhere.iterdir()) == []
