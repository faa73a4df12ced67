"""The online way to Weights & Biases against a server of its protocol on this machine, read back over HTTP.

`openwandb` (package index; its licence forbids commercial use, so it is no dependency) is looked for at PAREBENCH_OPENWANDB, then
on the PATH. It does not resume runs and shows no exit codes: those are not compared.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract.toy import write_toy_data
from tests.harness.tiny_sweep import SIX, cells, sweep, warnings

pytestmark = pytest.mark.accept
START = 60


@dataclass
class Server:
    """A running server."""

    url: str
    key: str

    def get(self, path: str) -> dict[str, Any]:
        """The JSON answer of its API."""
        request = urllib.request.Request(f"{self.url}/api/v2/{path}", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def program() -> str:
    """The server's program."""
    found = os.environ.get("PAREBENCH_OPENWANDB") or shutil.which("openwandb")
    if not found:
        pytest.skip("openwandb is not installed (own environment, PAREBENCH_OPENWANDB=<path of the program>)")
    return found


@contextmanager
def serving(program: str, folder: Path, port: int) -> Iterator[tuple[Server, subprocess.Popen]]:
    """openwandb on a port of the loopback device, with its data in `folder`."""
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "data")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            yield Server(f"http://127.0.0.1:{port}", _key(folder / "log")), process
        finally:
            process.terminate()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def server(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server."""
    with serving(program, tmp_path_factory.mktemp("server"), free_port()) as (running, _):
        yield running


def _key(log: Path) -> str:
    """The key of the server's first user, which it prints once it serves."""
    for _ in range(START):
        text = log.read_text()
        if "startup complete" in text:
            return re.search(r"WANDB_API_KEY=(local\w+)", text).group(1)
        time.sleep(1)
    raise AssertionError(f"the server did not start: {text}")


@pytest.fixture(scope="module")
def store(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep that was mirrored to the server while it ran."""
    folder = tmp_path_factory.mktemp("online")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", server.url)
        patch.setenv("WANDB_API_KEY", server.key)
        settings = ["run.sweep=six", "tracker=online", "tracker.timeout=120", "hydra.launcher.workers=2"]
        code, said = sweep(folder / "runs", write_toy_data(folder / "data"), *settings, SIX)
    assert code == 1
    assert not warnings(said)
    return folder / "runs"


@pytest.fixture(scope="module")
def runs(server: Server, store: Path) -> dict[str, dict[str, Any]]:
    """What the server says of each run, by cell."""
    listed = [server.get(f"runs/{run['run_id']}")["run"] for run in server.get("projects/default/parebench/runs")["runs"]]
    found = {run["config"]["cell"]["value"]: run for run in listed}
    assert len(found) == len(listed) == 6
    return found


def test_the_server_has_every_cell_with_its_configuration(store: Path, runs: dict[str, dict[str, Any]]) -> None:
    for cell, left in cells(store).items():
        config = {key: entry["value"] for key, entry in runs[cell]["config"].items()}
        assert runs[cell]["tags"][1:] == ["tiny_bert", "demo/sst2", left["status"]]
        if left["status"] == "done":
            assert {key: config[f"recipe/{key}"] for key in left["identity"]["recipe"]} == left["identity"]["recipe"]
            assert config["method"] == left["identity"]["method"]["name"]


def test_the_server_has_the_numbers_of_the_record(store: Path, runs: dict[str, dict[str, Any]]) -> None:
    for cell, left in cells(store).items():
        summary = runs[cell]["summary"]
        assert summary["status"] == left["status"]
        for result in left.get("results", ()):
            variant = "" if result["variant"] == "main" else f"/{result['variant']}"
            for name, value in result["metrics"].items():
                assert summary[f"{result['protocol']}{variant}/{name}"] == value
        if left["status"] == "done":
            assert summary["cost/sparsity/prunable"] == left["costs"]["sparsity"]["prunable"]
        else:
            assert summary["log"].endswith("loss is nan at step 2")


def test_the_server_has_the_learning_curves(server: Server, store: Path, runs: dict[str, dict[str, Any]]) -> None:
    for cell in cells(store):
        lines = [json.loads(line) for line in (store / cell / "history.jsonl").read_text().splitlines()]
        curves = server.get(f"runs/{runs[cell]['run_id']}/metrics")["metrics_by_key"]
        for key in ("step", "loss", "grad_norm", "learning_rate", "tokens"):
            assert [point["value"] for point in curves[f"train/main/{key}"]] == [line[key] for line in lines]


def test_a_server_that_dies_halfway_gets_the_rest_later(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, port, data = tmp_path / "runs", free_port(), write_toy_data(tmp_path / "data")
    with serving(program, tmp_path, port) as (server, process):
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", server.key)
        threading.Thread(target=_kill_after_the_first_run, args=(store, process), daemon=True).start()
        code, said = sweep(store, data, "run.sweep=six", "tracker=online", "tracker.timeout=5", "hydra.launcher.workers=2", SIX)
    assert code == 1
    assert len(warnings(said)) == 1, said
    assert len(list(store.glob("*/record.json"))) == 5
    where = ["--store", str(store), "--sweep", "six", "--folder", str(store / ".wandb"), "--kind", "online"]
    with serving(program, tmp_path, port) as (server, _):
        command = [sys.executable, "-m", "harness.sync", *where, "--project", "parebench", "--timeout", "60"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout
        listed = server.get("projects/default/parebench/runs")["runs"]
        summaries = {run["run_id"].split("-")[0]: server.get(f"runs/{run['run_id']}")["run"]["summary"] for run in listed}
    assert len(listed) == 6
    assert {cell: summary["status"] for cell, summary in summaries.items()} == {cell: left["status"] for cell, left in cells(store).items()}


def _kill_after_the_first_run(store: Path, process: subprocess.Popen) -> None:
    while not any(json.loads(path.read_text())["status"] for path in store.glob(".wandb-sent/*/*.json")):
        time.sleep(0.2)
    process.kill()
