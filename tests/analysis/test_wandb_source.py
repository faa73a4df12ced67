"""A sweep read from Weights & Biases is the sweep read from its store: offline files that wandb wrote, and a stand-in for its Api."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import wandb_source
from analysis.cli import main
from analysis.load import load, predictions
from analysis.wandb_files import payloads, read_run
from analysis.wandb_source import NO_RECORD, MirroredRun, offline, online, rebuild
from harness.store import Store
from methods.spec import UserError

from .simulate import failure, record, scores

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("md", "csv", "latex", "html")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SIMULATED records of two methods and one failure, as a sweep leaves them."""
    root = tmp_path_factory.mktemp("mirrored") / "runs"
    for method, accuracy in (("lora", 0.8), ("full_ft", 0.9)):
        for seed in (0, 1):
            settings = {"targets": ["q", "v"], "r": 8}
            made = record(root, f"{method}{seed}", method, seed, scores(method, seed, accuracy + seed / 100), config=settings)
            made.identity["seed"] = seed
            Store(root).write(made)
    failure(root, "bitfit0", "bitfit", 0)
    for name, text in (("1.json", {"taken": 0.0}), ("1.end.json", {"status": "diverged", "code": 4, "seconds": 1.0})):
        path = root / "bitfit0" / "attempts" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(text | {"lines": ["first", "the loss is not finite"]}))
    Store(root).join("simulated", [], [{"cell": path.name} for path in root.iterdir() if path.is_dir()])
    return root


@pytest.fixture(scope="module")
def folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Offline runs of that sweep, written by wandb."""
    out = tmp_path_factory.mktemp("offline")
    where = ["--store", str(store), "--sweep", "simulated", "--folder", str(out), "--kind", "offline", "--project", "p", "--timeout", "60"]
    done = subprocess.run([sys.executable, "-m", "harness.sync", *where], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.rglob("*.wandb"))) == 5
    return out


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a subcommand prints."""
    assert main(list(argv)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", FORMATS)
def test_the_table_from_wandb_files_is_the_table_from_the_store(kind, store, folder, capsys):
    from_store = printed(capsys, "table", "simulated", "--store", str(store), "--format", kind)
    assert "the loss is not finite" in from_store or "diverged" in from_store
    assert printed(capsys, "table", "simulated", "--wandb-dir", str(folder), "--format", kind) == from_store


def test_frames_and_predictions_are_equal(store, folder, tmp_path):
    rebuild(offline(folder), tmp_path)
    pd.testing.assert_frame_equal(load(tmp_path, "simulated"), load(store, "simulated"), check_like=True)
    for cell in ("lora0", "full_ft1"):
        pd.testing.assert_frame_equal(*(predictions(root, cell, f"evals/{cell}.parquet") for root in (store, tmp_path)))


def test_comparisons_conditions_and_exports_read_wandb_too(store, folder, tmp_path, capsys):
    asked = ["compare", "lora", "full_ft"]
    assert printed(capsys, *asked, "--wandb-dir", str(folder)) == printed(capsys, *asked, "--store", str(store))
    some = printed(capsys, "table", "--wandb-dir", str(folder), "--format", "csv", "--where", "method == 'lora'")
    assert "lora" in some and "full_ft" not in some
    printed(capsys, "export-records", "simulated", "--wandb-dir", str(folder), "--out", str(tmp_path / "results"))
    assert set(load(tmp_path / "results")["cell"]) == set(load(store)["cell"])


def test_a_run_without_its_record_is_missing_with_the_reason(folder, tmp_path, capsys):
    copied = tmp_path / "runs"
    shutil.copytree(folder, copied)
    for path in copied.rglob("lora1/record.json"):
        path.unlink()
    rebuild(offline(copied), tmp_path / "store")
    frame = load(tmp_path / "store").set_index("cell")
    assert frame["status"]["lora1"] == NO_RECORD and frame["seed"]["lora1"] == 1 and frame["method.r"]["lora1"] == 8
    shown = printed(capsys, "table", "--wandb-dir", str(copied), "--format", "md")
    assert f"lora, toy, toy/a@heldout: 1 of 2 seeds {NO_RECORD}; not ranked" in shown.replace("\\", "")


def test_predictions_that_were_changed_on_the_way_are_named(folder, tmp_path):
    rebuild(offline(folder), tmp_path)
    (tmp_path / "lora0" / "evals" / "lora0.parquet").write_bytes(b"other")
    assert load(tmp_path).attrs["damaged"] == ["lora0"]


def test_a_killed_run_is_read_as_far_as_it_was_written_and_a_damaged_one_is_named(folder, tmp_path, caplog):
    whole = next(path for path in folder.rglob("*.wandb") if "lora0" in path.name)
    data = whole.read_bytes()
    assert read_run(whole).ended and read_run(whole).summary["status"] == "done"
    for size in (3, 7, len(data) // 3, len(data) - 1):
        torn = tmp_path / f"{size}.wandb"
        torn.write_bytes(data[:size])
        assert size == 3 or not read_run(torn).ended
    assert len(list(payloads(data[: len(data) // 3]))) < len(list(payloads(data)))
    (tmp_path / "bad").mkdir()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for name, content in (("flipped", flipped), ("3", data[:3])):
        (tmp_path / "bad" / f"{name}.wandb").write_bytes(content)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="no runs of parebench"):
        rebuild(offline(tmp_path / "bad"), tmp_path / "store")
    assert "3.wandb was not read: it does not begin" in caplog.text and "flipped.wandb was not read: its checksum at byte" in caplog.text


def test_mistakes_are_sentences(tmp_path, capsys):
    for argv, words in (
        (["table", "--wandb-dir", str(tmp_path / "nothing")], "is no folder; give the one that holds the offline runs"),
        (["table", "--wandb-dir", str(tmp_path)], "no runs of parebench there"),
        (["table", "--wandb", "project"], "write --wandb <entity>/"),
        (["table", "--wandb", "a/b", "--wandb-dir", "x"], "not allowed with"),
    ):  # fmt: skip
        assert main(argv) == 2
        assert words in capsys.readouterr().err


# ---- wandb.Api, as wandb 0.31 shapes it ----


@dataclass
class FakeFile:
    """`wandb.apis.public.File`."""

    name: str
    source: Path
    broken: bool = False

    def download(self, root: str = ".", replace: bool = False, exist_ok: bool = False, api: Any = None) -> Any:
        if self.broken:
            raise OSError("404 Client Error")
        path = Path(root) / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert replace or not path.exists()
        shutil.copyfile(self.source, path)
        return path.open()


@dataclass
class FakeRun:
    """`wandb.apis.public.Run`: `summary_metrics` is a plain dict, `group` may be None."""

    id: str
    group: str | None
    config: dict[str, Any]
    summary_metrics: dict[str, Any]
    own: list[FakeFile] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def files(self, names: list[str] | None = None, pattern: str | None = None, per_page: int = 50) -> Iterator[FakeFile]:
        self.asked.append("files")
        return iter(self.own)


class FakeApi:
    """`wandb.Api`."""

    def __init__(self, folder: Path) -> None:
        self.found = []
        for path in sorted(folder.rglob("*.wandb")):
            run, kept = read_run(path), path.parent / "files"
            files = [FakeFile(file.relative_to(kept).as_posix(), file) for file in sorted(kept.rglob("*")) if file.is_file()]
            self.found.append(FakeRun(run.id, run.group, run.config, {**run.summary, "_runtime": 3, "_wandb": {"runtime": 3}}, files))
        self.found.append(FakeRun("someone-elses", None, {"lr": 1}, {"loss": 2.0}, [FakeFile("model.pt", folder)]))

    def runs(self, path: str | None = None, filters: dict[str, Any] | None = None, order: str = "+created_at", per_page: int = 50) -> Any:
        assert path == "entity/project"
        return [run for run in self.found if not filters or run.group == filters["group"]]


@pytest.mark.parametrize("sweep", ["simulated", None])
def test_the_frame_from_the_api_is_the_frame_from_the_store(sweep, store, folder, tmp_path):
    api = FakeApi(folder)
    rebuild(online("entity/project", sweep, api), tmp_path)
    pd.testing.assert_frame_equal(load(tmp_path, sweep), load(store, sweep), check_like=True)
    assert not (tmp_path / "model.pt").exists() and not api.found[-1].asked


def test_what_the_network_says_is_one_sentence(folder, tmp_path):
    api = FakeApi(folder)
    next(file for run in api.found for file in run.own if file.name == "lora0/record.json").broken = True
    with pytest.raises(UserError, match=r"--wandb entity/project cannot be read \(404 Client Error\); check the name, WANDB_API_KEY"):
        rebuild(online("entity/project", None, api), tmp_path)
    api.runs = lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("Could not find project"))
    with pytest.raises(UserError, match="Could not find project"):
        list(online("entity/project", None, api))


def test_of_several_runs_of_a_cell_the_best_counts(folder):
    runs = {run.cell: run for run in offline(folder)}
    done = runs["lora0"]
    torn = MirroredRun("lora0-9-abc", done.group, done.config, {**done.summary, "status": "running"})
    failed = MirroredRun("lora0-3-abc", done.group, done.config, {"status": "oom", "log": "killed"})
    later = MirroredRun("lora0-12-abc", done.group, done.config, {"status": "diverged", "log": "nan"})
    assert max([torn, failed, done, later], key=lambda run: run.attempt) is done
    assert max([failed, later], key=lambda run: run.attempt) is later


def test_a_configuration_keeps_its_blocks():
    flat = {
        "method": "chain", "model": "m", "task": "t", "budget": "b", "cell": "c", "family": "f", "precision": "float32", "seed": 4,
        "method/steps/a/name": "wanda", "method/steps/b/name": "lora", "method/order": ["a", "b"], "recipe/lr": 0.1, "model/max_length": 8,
    }  # fmt: skip
    half = wandb_source.configuration(flat, "s")
    assert half["method"] == {"name": "chain", "steps": {"a": {"name": "wanda"}, "b": {"name": "lora"}}, "order": ["a", "b"]}
    assert (half["model"], half["recipe"], half["seed"]) == ({"name": "m", "max_length": 8}, {"lr": 0.1}, 4)
    assert half["run"] == {"sweep": "s"}
