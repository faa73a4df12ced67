"""The view of Weights & Biases that is made from code: its panels name what the mirror logs. Needs no network."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import dashboard
from analysis.cli import main
from harness import runview
from harness.record import Phase, Record, Result
from harness.store import Store

ROOT = Path(__file__).resolve().parents[2]


def result(protocol: str, variant: str = "main", value: float = 0.5) -> Result:
    """Accuracy under a protocol."""
    return Result(protocol, variant, {"accuracy": value, "f1": 0.25}, "accuracy", True, 8, {}, "p.parquet", 1, 0.1)


def record(cell: str, method: str, phases: list[str]) -> Record:
    """A finished cell of the sweep `s`."""
    half: dict[str, Any] = {key: {"name": "x"} for key in ("model", "task", "budget")} | {
        "method": {"name": method},
        "precision": "float32",
    }
    costs = {"parameters": {"trainable_method": 5}, "changed": {"bytes": 20}}
    return Record(
        schema=1, cell=cell, status="done", identity=half, origins={}, sweep="s", seed=0, deterministic=False, model_note="",
        results=[result("glue/sst2@heldout"), result("glue/sst2@heldout", "last"), result("rte@official")],
        selection={"rule": "heldout", "phase": phases[-1], "step": 2, "last_step": 4, "metric": 0.5}, costs=costs,
        phases=[Phase(name, 4, 32, 320, 2.0, 1000, 0) for name in phases], measures={}, data={}, numerics={}, sources={}, seconds=3.0,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two finished cells, one of them trained in two phases, with their learning curves; and one of another sweep."""
    kept = Store(tmp_path / "runs")
    stranger = replace(record("c", "lora", ["odd"]), sweep="t", results=[result("other@x")])
    for one in (record("a", "lora", ["main"]), record("b", "magnitude", ["dense", "main"]), stranger):
        kept.write(one)
        curve = [
            {"phase": phase.name, "step": 4, "tokens": 320, "seconds": 2.0, "loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1}
            for phase in one.phases
        ]
        curve.append({"phase": one.phases[-1].name, "step": 4, "selection/accuracy": 0.5})
        (kept.folder(one.cell) / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curve))
    return kept.root


@pytest.fixture
def view(store: Path) -> dict[str, Any]:
    """The view as W&B takes it."""
    pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
    assert main(["dashboard", "--wandb", "s", "--store", str(store), "--entity", "team", "--out", str(store / "view.json")]) == 0
    return json.loads((store / "view.json").read_text())


def panels(view: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The panels of a section: type and configuration."""
    (found,) = [one for one in view["spec"]["section"]["panelBankConfig"]["sections"] if one["name"] == section]
    return [{"type": panel["viewType"], **panel["config"]} for panel in found["panels"]]


def test_quality_stands_against_cost_once_per_protocol(view: dict[str, Any]) -> None:
    shown = panels(view, "Quality versus cost")
    assert {panel["type"] for panel in shown} == {"Scatter Plot"}
    costs = ("parameters/trainable_method", "changed/bytes", "seconds")
    assert [(panel["xAxis"], panel["yAxis"]) for panel in shown] == [
        (f"summary:cost/{cost}", f"summary:{protocol}/accuracy") for protocol in ("glue/sst2@heldout", "rte@official") for cost in costs
    ]


def test_curves_are_drawn_by_method_over_the_steps_of_their_phase(view: dict[str, Any]) -> None:
    shown = panels(view, "Learning curves by method")
    assert {(panel["type"], panel["groupBy"]) for panel in shown} == {("Run History Line Plot", "method.value")}
    assert [panel["xAxis"] for panel in shown] == ["train/main/step"] * 5 + ["train/dense/step"] * 4
    names = [panel["metrics"][0] for panel in shown]
    every = ["loss", "grad_norm", "learning_rate", "tokens_per_second"]
    assert names == [f"train/main/{name}" for name in [*every, "selection/accuracy"]] + [f"train/dense/{name}" for name in every]


def test_bars_table_and_the_runs_of_the_sweep_alone(view: dict[str, Any]) -> None:
    bars = panels(view, "Tasks")
    assert [panel["metrics"] for panel in bars] == [
        ["summary_metrics.glue/sst2@heldout/accuracy"],
        ["summary_metrics.rte@official/accuracy"],
    ]
    assert {(panel["type"], panel["groupBy"]) for panel in bars} == {("Bar Chart", "method.value")}
    (table,) = panels(view, "Results")
    assert table["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"] == "results"
    (runs,) = view["spec"]["section"]["runSets"]
    filters = [(one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert filters == [("group", "=", "s"), ("tags", "NIN", ["interrupted"])]
    assert (view["entity"], view["project"], view["displayName"]) == ("team", "parebench", "parebench s")


def test_every_key_of_a_panel_is_one_that_the_mirror_logs(store: Path, view: dict[str, Any]) -> None:
    attempts = [runview.newest(Store(store), cell) for cell in ("a", "b")]
    summary = {key for one in attempts for key in runview.summary(one, one.ending())}
    curves = {key for one in attempts for row in one.curve() for key in row}
    scatters, lines, bars = (panels(view, name) for name in ("Quality versus cost", "Learning curves by method", "Tasks"))
    assert {panel[axis].removeprefix("summary:") for panel in scatters for axis in ("xAxis", "yAxis")} <= summary
    assert {key for panel in lines for key in (panel["xAxis"], *panel["metrics"])} <= curves
    assert {key.removeprefix("summary_metrics.") for panel in bars for key in panel["metrics"]} <= summary
    assert {panel["groupBy"].removesuffix(".value") for panel in lines + bars} <= set(attempts[0].title("s", "done").config)


def test_what_is_missing_is_said_in_one_sentence(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--store", str(store)]
    assert main(["dashboard", "--wandb", *where]) == 2
    assert main(["dashboard", "s", *where]) == 2
    assert main(["dashboard", "--wandb", "nosuch", *where]) == 2
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "--wandb", "s", *where, "--out", str(store / "view.json")]) == 2
    sentences = capsys.readouterr().err.splitlines()
    for text, sentence in zip(("needs the name of a sweep", "--wandb", "no finished cells of sweep nosuch"), sentences, strict=False):
        assert text in sentence
    assert "pip install 'parebench[dashboard]'" in sentences[3]
    assert len(sentences) == 4


def test_the_other_reports_do_not_import_wandb() -> None:
    code = "import analysis.cli, sys; sys.exit('wandb' in sys.modules or 'wandb_workspaces' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_contents_come_from_the_records_of_the_sweep(store: Path) -> None:
    shown = dashboard.contents(store, "t")
    assert list(shown.results) == ["other@x/accuracy"]
    assert list(shown.curves) == ["odd"]
