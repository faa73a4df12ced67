"""Weights & Biases as a mirror of the store: its own files are read back and compared with the records, whatever happens to W&B."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import dispatch, lease, runview, worker
from harness.cli import run
from harness.config import TrackerConfig
from harness.mirror import started
from harness.store import Store
from tests.contract.toy import write_toy_data
from tests.harness.tiny_sweep import SIX, TINY, cells, sweep, warnings
from tests.harness.wandb_files import OfflineRun, read_run, read_runs

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef" * 3


def send(store: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m harness.sync` of the sweep `six` to offline runs in `folder`."""
    return subprocess.run(command(store, folder), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def command(store: Path, folder: Path, *flags: str) -> list[str]:
    """The command line of the mirror."""
    where = ["--store", str(store), "--sweep", "six", "--folder", str(folder)]
    return [sys.executable, "-m", "harness.sync", *where, "--kind", "offline", "--project", "parebench", "--timeout", "20", *flags]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy data in hub columns."""
    return write_toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def live(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep of 6 cells, one of which diverges, that was mirrored to offline runs while it ran."""
    store = tmp_path_factory.mktemp("live") / "runs"
    code, said = sweep(store, toy, "run.sweep=six", "tracker=offline", "hydra.launcher.workers=2", SIX)
    assert code == 1
    assert not warnings(said)
    return store


def runs(store: Path, folder: Path | None = None) -> dict[str, OfflineRun]:
    """Offline runs by cell; asserts that each cell has one."""
    found = {run.config["cell"]: run for run in read_runs(folder or store / ".wandb").values()}
    assert set(found) == set(cells(store))
    return found


def test_every_cell_is_one_run_that_says_what_it_is(live: Path) -> None:
    found = runs(live)
    assert len(found) == 6
    assert len(read_runs(live / ".wandb")) == 6
    for cell, one in found.items():
        assert one.id.startswith(f"{cell}-1-")
        assert (one.group, one.project, one.job_type) == ("six", "parebench", one.config["method"])
        family = {"lora": "adapters", "full_ft": "baselines", "magnitude": "prune"}[one.config["method"]]
        assert one.tags == (family, "tiny_bert", "demo/sst2", cells(live)[cell]["status"])


def test_the_configuration_is_that_of_the_record(live: Path) -> None:
    for cell, one in runs(live).items():
        record = cells(live)[cell]
        if record["status"] != "done":
            assert one.config["recipe/lr"] == 1e30
            continue
        half = record["identity"]
        blocks = {name: {k: v for k, v in half[name].items() if k != "name"} for name in ("method", "model", "task", "budget")}
        blocks |= {"recipe": half["recipe"], "data": half["data"], "origin": record["origins"]}
        expected = {f"{name}/{key}": value for name, block in blocks.items() for key, value in block.items()}
        expected |= {name: half[name]["name"] for name in ("method", "model", "task", "budget")}
        expected |= {"seed": half["seed"], "precision": "float32", "cell": cell, "family": one.tags[0]}
        assert one.config == expected


def test_the_configuration_of_a_running_cell_is_a_part_of_what_its_record_will_say(live: Path) -> None:
    """W&B only adds to a configuration, so a key that the record does not have would stay."""
    for cell in (cell for cell, record in cells(live).items() if record["status"] == "done"):
        done, running = (runview.newest(Store(live), cell) for _ in (0, 1))
        running.__dict__["record"] = None  # as long as there is none
        config = running.title("six", "running").config
        assert config.items() <= done.title("six", "done").config.items()
        assert {"recipe/batch", "task/limit", "budget/examples"} <= config.keys()


def test_the_history_is_the_learning_curve(live: Path) -> None:
    for cell, one in runs(live).items():
        lines = [json.loads(line) for line in (live / cell / "history.jsonl").read_text().splitlines()]
        speeds = [row.pop("train/main/tokens_per_second") for row in one.history]
        assert one.history == [{f"train/main/{key}": value for key, value in line.items() if key != "phase"} for line in lines]
        assert one.steps == list(range(len(lines)))
        assert one.axes["train/main/*"] == "train/main/step"
        before = [{"tokens": 0, "seconds": 0}, *lines]
        assert speeds == [(b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]) for a, b in zip(before, lines, strict=False)]


def test_the_summary_is_that_of_the_record(live: Path) -> None:
    for cell, one in runs(live).items():
        record = cells(live)[cell]
        if record["status"] != "done":
            continue
        own = {key: value for key, value in one.summary.items() if not key.startswith("train/")}
        for result in record["results"]:
            variant = "" if result["variant"] == "main" else f"/{result['variant']}"
            for name, value in result["metrics"].items():
                assert own.pop(f"{result['protocol']}{variant}/{name}") == value
        rows = [[r["protocol"], r["variant"], k, v, r["n"]] for r in record["results"] for k, v in r["metrics"].items()]
        assert one.table == {"columns": ["protocol", "variant", "metric", "value", "n"], "data": rows}
        assert own["cost/parameters/trainable_method"] == record["costs"]["parameters"]["trainable_method"]
        assert own.pop("cost/seconds") == record["seconds"]
        assert own.pop("cost/peak_memory") == record["phases"][0]["peak_rss"]
        assert own.pop("cost/tokens_per_second") == record["phases"][0]["tokens"] / record["phases"][0]["seconds"]
        assert (own.pop("status"), own.pop("attempts"), one.exit_code) == ("done", 1, 0)
        del own["results"]
        blocks = (("cost", "costs"), ("measure", "measures"), ("selection", "selection"))
        assert own == {key: value for name, block in blocks for key, value in numbers(name, record[block]).items()}


def numbers(prefix: str, tree: dict[str, Any]) -> dict[str, Any]:
    """Numeric leaves under slashed names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= numbers(f"{prefix}/{key}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{key}"] = value
    return found


def test_a_failed_cell_is_a_failed_run_of_its_class(live: Path) -> None:
    (cell,) = [cell for cell, left in cells(live).items() if left["status"] != "done"]
    one = runs(live)[cell]
    assert one.exit_code == 4
    assert one.summary["status"] == "diverged"
    assert one.summary["log"].splitlines()[-1] == "methods.spec.Diverged: loss is nan at step 2"
    assert one.table is None
    assert "origin/lr" not in one.config


def test_a_cell_s_process_has_not_imported_wandb(live: Path, tmp_path: Path) -> None:
    terms = worker.Terms(tmp_path, lease.take(tmp_path, None).number, 1)
    ending = dispatch.in_process("tests.harness.tiny_sweep:refuse_wandb", (), terms)
    assert ending.code == worker.DONE, (tmp_path / "log.txt").read_text()


def test_a_second_synchronisation_sends_nothing(live: Path) -> None:
    before = {path: path.stat().st_mtime_ns for name in (".wandb", ".wandb-sent") for path in (live / name).rglob("*.*")}
    done = send(live, live / ".wandb")
    assert (done.returncode, done.stdout) == (0, "runs: 0 sent\n")
    after = {path: path.stat().st_mtime_ns for path in before}
    assert after == before
    assert len(read_runs(live / ".wandb")) == 6


def test_a_backfill_of_an_untracked_store_equals_the_live_runs(live: Path, tmp_path: Path) -> None:
    store = shutil.copytree(live, tmp_path / "copy", ignore=shutil.ignore_patterns(".wandb", ".wandb-sent"))
    done = send(store, tmp_path / "late")
    assert (done.returncode, done.stdout) == (0, "runs: 6 sent\n"), done.stderr
    late, first = runs(store, tmp_path / "late"), runs(live)
    for cell, one in late.items():
        for both in (one, first[cell]):
            both.summary.pop("results", None)  # names of uploads, drawn at random; the table itself is compared
        assert one == first[cell]


def test_a_mirror_killed_halfway_leaves_no_half_run(live: Path, tmp_path: Path) -> None:
    """SIGKILL loses what wandb had not written: the run is written again from the start, not beside the first."""
    store = shutil.copytree(live, tmp_path / "copy", ignore=shutil.ignore_patterns(".wandb", ".wandb-sent"))
    cell = next(cell for cell, left in cells(store).items() if left["status"] == "done")
    endings = [store / cell / "record.json", store / cell / "attempts/1.end.json"]
    kept = {path: path.read_bytes() for path in endings}
    for path in endings:
        path.unlink()
    os.utime(store / cell / "config.json")
    with subprocess.Popen(command(store, tmp_path / "w", "--follow"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as mirror:
        ledger = until(lambda: [p for p in store.glob(f".wandb-sent/*/{cell}-*.json") if json.loads(p.read_text())["lines"]])
        until(lambda: len(list(store.glob(".wandb-sent/*/*.json"))) == 6)
        assert json.loads(ledger[0].read_text())["status"] is None
        mirror.send_signal(signal.SIGKILL)
    for path, content in kept.items():
        path.write_bytes(content)
    assert send(store, tmp_path / "w").returncode == 0
    assert runs(store, tmp_path / "w")[cell].history == runs(live)[cell].history
    assert len(read_runs(tmp_path / "w")) == 6


def until(condition: Any) -> Any:
    """What `condition` returns once it is true; fails after a minute."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "never came"
        time.sleep(0.1)
    return found


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's address is a port of this machine that nobody listens on; a key is there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's address takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield


@pytest.mark.usefixtures("closed")
def test_a_sweep_ends_well_without_the_server(toy: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    code, said = sweep(store, toy, "run.sweep=gone", "tracker=online", "method=lora,bitfit", "tracker.timeout=5")
    assert code == 0
    assert len(warnings(said)) == 1, said
    assert "does not answer" in warnings(said)[0]
    assert "parebench-sweep sync gone" in warnings(said)[0]
    assert sorted(record["status"] for record in cells(store).values()) == ["done", "done"]
    holders = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert not holders


def test_a_sweep_ends_well_where_the_tracker_s_folder_cannot_be_written(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = tmp_path / "runs"
    code, said = sweep(store, toy, "run.sweep=full", "tracker=offline", f"tracker.folder={tmp_path}/file/wandb", "method=bitfit")
    assert code == 0
    assert len(warnings(said)) == 1, said
    assert "Not a directory" in warnings(said)[0]
    assert [record["status"] for record in cells(store).values()] == ["done"]


@pytest.mark.usefixtures("silent")
def test_a_server_that_never_answers_is_not_waited_for(live: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = shutil.copytree(live, tmp_path / "copy", ignore=shutil.ignore_patterns(".wandb", ".wandb-sent"))
    with started(TrackerConfig("online", "parebench", None, str(tmp_path / "w"), 2.0), store, "six"):
        pass
    (warning,) = warnings(capfd.readouterr().err)
    assert "W&B" in warning


def test_a_run_of_w_and_b_around_the_sweep_is_left_alone(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb agent` and the like set an id, a service and a mode for their own run: not for the cells."""
    around = {"WANDB_RUN_ID": "theirs", "WANDB_SERVICE": "3-1-unix-/nowhere", "WANDB_MODE": "disabled", "WANDB_RUN_GROUP": "other"}
    for key, value in around.items():
        monkeypatch.setenv(key, value)
    store = shutil.copytree(live, tmp_path / "copy", ignore=shutil.ignore_patterns(".wandb", ".wandb-sent"))
    with started(TrackerConfig("offline", "parebench", None, str(tmp_path / "w"), 60.0), store, "six"):
        pass
    assert {run.group for run in runs(store, tmp_path / "w").values()} == {"six"}
    assert os.environ["WANDB_SERVICE"] == around["WANDB_SERVICE"]


def test_the_reader_refuses_a_damaged_file(live: Path, tmp_path: Path) -> None:
    path = next((live / ".wandb").rglob("*.wandb"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "run.wandb").write_bytes(data)
    with pytest.raises(AssertionError, match="checksum"):
        read_run(tmp_path / "run.wandb")


def test_the_sweep_command_sends_what_is_missing(live: Path, tmp_path: Path) -> None:
    store = shutil.copytree(live, tmp_path / "copy", ignore=shutil.ignore_patterns(".wandb", ".wandb-sent"))
    said = [sync_command(store, "six"), sync_command(store, "six"), sync_command(store, "sx")]
    assert [(one.returncode, one.stdout) for one in said] == [(0, "runs: 6 sent\n"), (0, "runs: 0 sent\n"), (2, "")]
    assert said[2].stderr == "parebench-sweep: sweep=sx is unknown; did you mean six? allowed: six\n"
    assert len(runs(store)) == 6


def sync_command(store: Path, name: str) -> subprocess.CompletedProcess[str]:
    """`parebench-sweep sync --offline`."""
    command = [sys.executable, "-m", "harness.sweep_cli", "sync", name, "--offline", "--store", str(store)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_single_cell_is_mirrored_too(toy: Path, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    assert run([*TINY, f"run.store={store}", f"data_dir={toy}", "method=bitfit", "tracker=offline"]) == 0
    (one,) = runs(store).values()
    assert (one.group, one.job_type, one.exit_code) == ("adhoc", "bitfit", 0)
