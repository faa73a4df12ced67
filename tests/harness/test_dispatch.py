"""One process per cell, how its ending is classed, and the sweep around it: a union of products, planned before the first cell."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness import dispatch, human, lease, outcome, worker
from harness.cli import run
from harness.store import Store

ROOT = Path(__file__).resolve().parents[2]
ENDINGS = {
    "returns": ("math:sqrt", (4.0,), worker.DONE, "done"),
    "user error": ("methods.spec:number", ("key", -1, 0), worker.REFUSED, "error"),
    "exception": ("math:sqrt", (-1.0,), worker.ERROR, "error"),
    "diverged": ("harness.guard:check_finite", ("loss", float("nan"), 3), worker.DIVERGED, "diverged"),
    "typed out of memory": ("builtins:bytearray", (1 << 62,), worker.OUT_OF_MEMORY, "oom"),
    "interrupted": ("os:_exit", (worker.INTERRUPTED,), worker.INTERRUPTED, "interrupted"),
    "killed": ("signal:raise_signal", (signal.SIGKILL,), -signal.SIGKILL, "interrupted"),
    "crashed": ("os:abort", (), -signal.SIGABRT, "error"),
    "wrong exit": ("sys:exit", (9,), worker.ERROR, "error"),
}
HELPER = '''
"""What the tests run in a cell's process."""

import os
import time
from pathlib import Path

from harness.worker import stop_requested


def note_threads(path):
    import torch

    Path(path).write_text(str(torch.get_num_threads()))


def wait_for_stop(folder):
    aside = Path(folder) / "starting"
    aside.write_text(str(os.getpid()))
    aside.rename(Path(folder) / "started")  # whoever waits for it never reads half of it
    for _ in range(6000):
        if stop_requested():
            (Path(folder) / "stopped").touch()
            return
        time.sleep(0.01)


def evaluate(folder):
    from harness.worker import interruptible

    with interruptible():
        (Path(folder) / "started").write_text(str(os.getpid()))
        time.sleep(60)
'''


def terms(folder: Path, threads: int = 1) -> worker.Terms:
    """What a cell's process needs: a folder and a lease on it."""
    folder.mkdir(exist_ok=True)
    number = lease.latest(folder) or lease.take(folder, None).number
    return worker.Terms(folder, number, threads)


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with a module `in_cell`."""
    (tmp_path / "in_cell.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("call", "arguments", "code", "status"), ENDINGS.values(), ids=ENDINGS.keys())
def test_every_ending_has_its_exit_code_and_class(call: str, arguments: tuple, code: int, status: str, tmp_path: Path) -> None:
    found = dispatch.in_process(call, arguments, terms(tmp_path / "cell"))
    assert found.code == code
    assert dispatch.classify(found.code, killed_for_memory=False) == status


def test_a_kill_is_out_of_memory_only_on_evidence() -> None:
    for code in (-signal.SIGKILL, 137):
        assert dispatch.classify(code, killed_for_memory=True) == "oom"
        assert dispatch.classify(code, killed_for_memory=False) == "interrupted"
    assert dispatch.classify(1, killed_for_memory=True) == "error"


def test_the_log_ends_with_the_reason(tmp_path: Path) -> None:
    log, granted = tmp_path / "log.txt", terms(tmp_path)
    dispatch.in_process("methods.spec:number", ("method.r", -1, 0), granted)
    dispatch.in_process("harness.guard:check_finite", ("loss", float("nan"), 3), granted)
    text = log.read_text().splitlines()
    assert text[0] == "method.r=-1 is out of range; allowed: a number in [0, inf]"
    assert outcome.last_lines(log)[-1] == "methods.spec.Diverged: loss is nan at step 3"
    assert len(outcome.last_lines(log)) == outcome.LAST_LINES


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_inside_the_process(threads: int, helper: Path) -> None:
    assert dispatch.in_process("in_cell:note_threads", (str(helper / "threads"),), terms(helper, threads)).code == 0
    assert (helper / "threads").read_text() == str(threads)


def _wait_for(path: Path) -> None:
    for _ in range(6000):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path.name} did not appear")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_asks_the_cell_to_stop(number: int, helper: Path) -> None:
    codes: list[int] = []
    arguments = ("in_cell:wait_for_stop", (str(helper),), terms(helper))
    thread = threading.Thread(target=lambda: codes.append(dispatch.in_process(*arguments).code))
    thread.start()
    _wait_for(helper / "started")
    os.kill(int((helper / "started").read_text()), number)
    thread.join()
    assert codes == [worker.DONE]
    assert (helper / "stopped").exists()


def test_the_server_outlives_a_signal_to_every_process_of_a_job(helper: Path) -> None:
    """The cell's own ending is seen; under a server that died of the signal it would be 255, and its cell unobserved."""
    codes: list[int] = []
    arguments = ("in_cell:wait_for_stop", (str(helper),), terms(helper))
    thread = threading.Thread(target=lambda: codes.append(dispatch.in_process(*arguments).code))
    thread.start()
    _wait_for(helper / "started")
    cell = psutil.Process(int((helper / "started").read_text()))
    for number in (signal.SIGTERM, signal.SIGUSR2):
        for pid in (cell.ppid(), cell.pid):
            os.kill(pid, number)
    thread.join()
    assert codes == [worker.DONE]


@pytest.mark.parametrize("name", ["harness.dispatch._stopping", "harness.worker._stop"])
def test_a_signal_inside_the_handler_of_another_does_not_block(name: str) -> None:
    """Whatever function the first handler has just called, a second signal arrives there; `threading.Event` hangs at this."""
    module, _, flag = name.rpartition(".")
    code = f"""
import signal, sys
from {module} import {flag} as flag
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda *_: flag.set())
sys.setprofile(lambda frame, event, _: event == "call" and signal.raise_signal(signal.SIGUSR2))
signal.raise_signal(signal.SIGTERM)
sys.setprofile(None)
sys.exit(not flag.is_set())
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_an_evaluation_stops_at_once_when_asked(helper: Path) -> None:
    codes: list[int] = []
    arguments = ("in_cell:evaluate", (str(helper),), terms(helper))
    thread = threading.Thread(target=lambda: codes.append(dispatch.in_process(*arguments).code))
    thread.start()
    _wait_for(helper / "started")
    os.kill(int((helper / "started").read_text()), signal.SIGTERM)
    thread.join(50)
    assert codes == [worker.INTERRUPTED]


@pytest.mark.accept
def test_a_cell_stops_when_its_dispatcher_is_killed(helper: Path) -> None:
    script = f"from harness import dispatch, lease, worker; from pathlib import Path; p = {str(helper)!r}; "
    script += "n = lease.take(Path(p), None).number; dispatch.in_process('in_cell:wait_for_stop', (p,), worker.Terms(Path(p), n, 1))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{helper}"}
    dispatcher = subprocess.Popen([sys.executable, "-c", script], env=environment)
    _wait_for(helper / "started")
    dispatcher.kill()
    dispatcher.wait()
    _wait_for(helper / "stopped")


def _sweep(tmp_path: Path, data: Path, *overrides: str) -> int:
    where = [f"run.store={tmp_path / 'runs'}", f"run.assets={tmp_path / 'assets'}", f"data_dir={data}", "run.device=cpu"]
    return run(["-m", "model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke", "precision=float32", *where, *overrides])


def test_a_sweep_runs_skips_and_reports_each_cell_once(tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """2 lr x 2 equal seeds of full_ft (one diverges) + 1 impossible method: 5 cells, 2 to run; the second time none, until asked."""
    grids = "hydra.sweeper.grids=[{method: full_ft, recipe.lr: '1e-3,1e30', seed: '0,0'}, {method: none}]"
    assert _sweep(tmp_path, shared_data, grids) == 1
    out = capsys.readouterr().out
    assert "5 cells: 2 to run, 0 already done, 1 skipped, 2 duplicates" in out
    assert "1 done, 1 skipped, 1 failed" in out
    assert "full_ft tiny_bert demo/sst2 seed 0 recipe.lr=1e+30 task.limit=8: diverged in" in out
    store = Store(tmp_path / "runs")
    (record,) = store.records()
    assert record.identity["recipe"]["lr"] == 1e-3 and record.origins["lr"] == "override"
    (failed,) = store.root.glob("*/outcome.json")
    assert json.loads(failed.read_text())["status"] == "diverged"
    assert not (store.root / record.cell / "outcome.json").exists()
    assert _sweep(tmp_path, shared_data, grids) == 1
    assert "5 cells: 0 to run, 1 already done, 1 skipped, 2 duplicates, 1 waiting for retry" in capsys.readouterr().out
    assert lease.latest(failed.parent) == 1
    assert _sweep(tmp_path, shared_data, grids, "run.retry=[diverged]") == 1
    assert "5 cells: 1 to run, 1 already done, 1 skipped, 2 duplicates" in capsys.readouterr().out
    assert lease.latest(failed.parent) == 2


def test_a_folder_set_aside_is_kept_and_read_by_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.set_aside("abc") is None
    for n in (1, 2):
        (tmp_path / "abc").mkdir()
        (tmp_path / "abc" / "record.json").write_text(str(n))
        assert store.set_aside("abc") == tmp_path / ".replaced" / f"abc-{n}"
        assert (tmp_path / ".replaced" / f"abc-{n}" / "record.json").read_text() == str(n)
    assert list(store.records()) == []


def test_a_sweep_of_skipped_cells_alone_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["-m", "model=tiny_bert", "method=none", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    assert "2 cells: 0 to run, 0 already done, 2 skipped, 0 duplicates" in out
    assert "none works on decoder models and tiny_bert is of family encoder" in out
    assert list(tmp_path.iterdir()) == []


LORA, BITFIT = {"method": "lora", "method.r": "4,8"}, {"method": "bitfit"}
SEEDS = {"seed": "0,1"}
PRODUCTS = {
    "a product": ([], SEEDS, [], ["seed=0", "seed=1"]),
    "a union": ([LORA, BITFIT], {}, [], ["method=lora method.r=4", "method=lora method.r=8", "method=bitfit"]),
    "a grid above params": (
        [BITFIT | {"seed": "7"}, BITFIT],
        SEEDS,
        [],
        ["seed=7 method=bitfit", "seed=0 method=bitfit", "seed=1 method=bitfit"],
    ),
    "typed above both": ([{"method": "lora,bitfit"}], SEEDS, ["seed=5", "method=dora"], ["seed=5 method=dora"]),
}


@pytest.mark.parametrize(("grids", "params", "typed", "expected"), PRODUCTS.values(), ids=PRODUCTS.keys())
def test_a_sweep_is_a_union_of_products(grids: list, params: dict, typed: list[str], expected: list[str]) -> None:
    from types import SimpleNamespace

    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    from hydra_plugins.parebench import Grid

    grid = Grid(None, params, grids)
    grid.hydra_context = SimpleNamespace(config_loader=ConfigLoaderImpl(create_config_search_path("pkg://conf")))
    assert [" ".join(cell) for cell in grid.products(typed)] == expected


def test_changed_names_single_values_only() -> None:
    assert human.changed(["method=lora", "method.r=4", "run.store=x", "+sweeps=q", "recipe.lr=1e-3"]) == "method.r=4 recipe.lr=1e-3"
