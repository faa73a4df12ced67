"""One real cell from the command line, as a new user types it: MiniLM, real rows, no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
CELL = ["model=minilm", "task=demo/sst2", "budget=smoke", "precision=float32", "run.sweep=try"]
"""In float32, since products of bfloat16 take minutes on processors without instructions for them."""


def call(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment in `folder`, with every hub switched off."""
    script = Path(sys.executable).with_name(argv[0])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    return subprocess.run([script, *argv[1:]], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def store(minilm_dir: Path, assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    more = [f"run.assets={assets.resolve()}", "run.keep_model=true"]
    done = call("parebench", "-m", "method=lora,linear_probe", *CELL, *more, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def records(store: Path) -> dict[str, dict]:
    """Records by method."""
    found = [json.loads(path.read_text()) for path in store.glob("*/record.json")]
    return {record["identity"]["method"]["name"]: record for record in found}


def test_records_hold_what_was_asked(store: Path) -> None:
    found = records(store)
    assert set(found) == {"lora", "linear_probe"}
    lora = found["lora"]
    assert lora["costs"]["parameters"]["trainable_method"] == 6 * 2 * 8 * (384 + 384)
    assert lora["costs"]["parameters"]["head"] == 384 * 384 + 384 + 2 * 384 + 2
    assert lora["results"][0]["protocol"] == "sst2@val-split"
    assert lora["results"][0]["n"] == 872 // 3
    assert [(p["steps"], p["examples"]) for p in lora["phases"]] == [(2, 64)]
    assert found["linear_probe"]["phases"][0]["examples"] == 64
    assert lora["costs"]["nonzero"]["prunable"]["total"] == 6 * 12 * 384 * 384


def test_predictions_give_the_recorded_accuracy(store: Path) -> None:
    for record in records(store).values():
        result = record["results"][0]
        table = pd.read_parquet(store / record["cell"] / result["predictions"])
        assert (table["label"] == table["prediction"]).mean() == result["metrics"]["accuracy"]
        assert len(table) == result["n"]


def test_the_export_is_a_plain_checkpoint(store: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    record = records(store)["lora"]
    assert record["costs"]["export"] == {"class": "BertForSequenceClassification", "max_abs_difference": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(store / record["cell"] / "model")
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_the_same_command_again_runs_nothing(store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/record.json")}
    again = call("parebench", "-m", "method=lora,linear_probe", *CELL, *_assets(), folder=store.parent)
    assert "2 already done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/record.json")} == before


def _assets() -> list[str]:
    return [f"run.assets={Path(os.environ.get('PAREBENCH_ASSETS', ROOT / 'assets')).resolve()}"]


@pytest.mark.parametrize("kind", ["md", "csv", "latex", "html"])
def test_the_table_shows_every_row(store: Path, kind: str) -> None:
    out = store.parent / f"table.{kind}"
    done = call("parebench-report", "table", "try", "--format", kind, "--out", str(out), folder=store.parent)
    assert done.returncode == 0, done.stderr
    text = out.read_text().replace("\\_", "_")
    assert "lora" in text
    assert "linear_probe" in text
    assert "sst2@val-split" in text
