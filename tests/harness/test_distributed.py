"""Several real processes train one cell: the same numbers as one process at the same global batch, one record, one fate.

Dropout is off where numbers are compared: each process draws its own, so a batch that is cut otherwise drops other units by nature.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness import dispatch, lease, plan, registry, training, worker
from harness.batching import IGNORED, GlobalBatches, Share
from harness.cli import run
from harness.compose import compose
from harness.outcome import Outcome, last_lines
from harness.resolve import steps
from harness.store import Store
from harness.worker import Terms
from tests.contract.toy import write_toy_data
from tests.contract.trial import CALIBRATION
from tests.harness import ranked

PROCESSES = 2
DRY = ["model.architecture.hidden_dropout_prob=0.0", "model.architecture.attention_probs_dropout_prob=0.0"]


def together(call: str, *arguments: Any, log: Path, processes: int = PROCESSES) -> int:
    """Run a function of `ranked` in a group of processes; the exit code."""
    lease.take(log.parent, None)
    terms = Terms(log.parent, lease.latest(log.parent), threads=1)
    return dispatch.in_process(f"tests.harness.ranked:{call}", arguments, terms, count=processes).code


def result(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `ranked.write` left."""
    return load_file(out.with_suffix(".safetensors")), json.loads(out.with_suffix(".json").read_text())


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference between two sets of weights; they must have the same names."""
    assert one.keys() == other.keys() and one
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same phase in one process, the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    ranked.train(str(folder / "out"), str(folder / "phase"), "single", ranked.BATCH)
    return folder / "out"


WRAPPERS = {
    "ddp": ("DistributedDataParallel", "BertForSequenceClassification"),
    "fsdp": ("Objective", "FSDPBertForSequenceClassification"),
}


@pytest.mark.parametrize(("compute", "micro"), [("ddp", 4), ("ddp", 2), ("fsdp", 2)])
def test_processes_together_take_the_steps_of_one(compute: str, micro: int, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert together("train", str(out), str(tmp_path / "phase"), compute, micro, log=tmp_path / "log.txt") == 0
    (weights, facts), (expected, single) = result(out), result(alone)
    assert apart(weights, expected) < 1e-5
    assert apart(weights, dict(ranked.model().named_parameters())) > 1e-3
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [line[key] for line in facts["lines"]] == pytest.approx([line[key] for line in single["lines"]], abs=1e-5)
    for key in ("step", "examples", "tokens", "epoch"):
        assert [line[key] for line in facts["lines"]] == [line[key] for line in single["lines"]]
    assert (facts["examples"], facts["tokens"]) == (single["examples"], single["tokens"])
    assert (facts["wrapper"], facts["model"]) == WRAPPERS[compute]


@pytest.mark.parametrize(("first", "then"), [("fsdp", "single"), ("ddp", "fsdp")])
def test_a_checkpoint_of_some_processes_is_resumed_by_others(first: str, then: str, alone: Path, tmp_path: Path) -> None:
    phase = tmp_path / "phase"

    def train(out: str, compute: str) -> None:
        if compute == "single":
            ranked.train(str(tmp_path / out), str(phase), compute, ranked.BATCH)
        else:
            assert together("train", str(tmp_path / out), str(phase), compute, 4, log=tmp_path / "log.txt") == 0

    train("first", first)
    saved = load_file(phase / "checkpoint-4" / "weights.safetensors")
    assert {name: tuple(t.shape) for name, t in saved.items() if not name.startswith("buffer:")} == {
        name: tuple(p.shape) for name, p in ranked.model().named_parameters()
    }
    assert [training.resumable(phase).name] == ["checkpoint-4"]
    train("then", then)
    weights, facts = result(tmp_path / "then")
    assert [line["step"] for line in facts["lines"]] == [5, 6]
    assert apart(weights, result(alone)[0]) < 1e-5


def test_another_wrapper_than_asked_for_is_an_error(tmp_path: Path) -> None:
    host = ranked.train(str(tmp_path / "out"), str(tmp_path / "phase"), "single", ranked.BATCH)
    for compute in ("ddp", "fsdp"):
        host.plan = replace(host.plan, compute=compute)
        with pytest.raises(RuntimeError, match=f"compute={compute} trains a BertForSequenceClassification"):
            host.check_wrapper()


def shares(examples: list[dict], batch: int, micro: int, world: int, epoch: int = 0) -> list[list[Share]]:
    """The micro-batches of every process."""
    samplers = [GlobalBatches(examples, batch, micro, 5, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    lists = [list(sampler) for sampler in samplers]
    assert all(len(own) == len(sampler) for own, sampler in zip(lists, samplers, strict=True))
    return lists


@pytest.mark.parametrize(("n", "batch", "micro", "world"), [(33, 8, 4, 2), (37, 8, 1, 2), (64, 8, 2, 4), (5, 12, 2, 3), (29, 12, 2, 3)])
@pytest.mark.parametrize("tokens", [False, True])
def test_the_parts_of_a_batch_have_its_mean(n: int, batch: int, micro: int, world: int, tokens: bool) -> None:
    labels = [[IGNORED] * (1 + i % 3) + [7] * (1 + i % 5) for i in range(n)] if tokens else [i % 2 for i in range(n)]
    examples = [{"labels": label, "attention_mask": [1] * (1 + i % 4)} for i, label in enumerate(labels)]
    counted = [sum(x != IGNORED for x in label[1:]) if tokens else 1 for label in labels]
    loss = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()

    def mean(rows: tuple[int, ...]) -> float:
        return sum(loss[r] * counted[r] for r in rows) / sum(counted[r] for r in rows)

    for epoch in (0, 1):
        (whole,) = shares(examples, batch, batch, 1, epoch)
        parts = shares(examples, batch, micro, world, epoch)
        accumulated = batch // (micro * world)
        assert sorted(row for share in whole for row in share.rows) == list(range(n))
        for number, one in enumerate(whole):
            cut = [own[accumulated * number : accumulated * (number + 1)] for own in parts]
            flat = [share for own in cut for share in own]
            assert sorted(row for share in flat if share.weight for row in share.rows) == sorted(one.rows)
            assert sum(share.weight * mean(share.rows) for share in flat) / world == pytest.approx(mean(one.rows))
            assert max(len(share.rows) for share in flat) <= micro
            for own in cut:
                assert sum(s.examples for s in own) == len(one.rows) and sum(s.tokens for s in own) == one.tokens
    assert shares(examples, batch, batch, 1, 0)[0][0].rows != shares(examples, batch, batch, 1, 1)[0][0].rows


def test_a_batch_that_cannot_be_cut_is_an_error() -> None:
    with pytest.raises(ValueError, match="a global batch of 8 cannot be cut into micro-batches of 2 on 3 processes"):
        GlobalBatches([], 8, 2, 0, 0, 3)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"))


RATE = ["recipe.batch=16", "recipe.lr=1e-3", "recipe.schedule=constant", "recipe.warmup=0"]


TRAINING = {"dropout": "0", "retrain": "true"}
"""Keys of methods and what they must be for training without noise."""


def container(method: str, store: Path, toy: Path, *more: str) -> dict[str, Any]:
    """A cell of 3 steps on the tiny BERT, without dropout; at a constant rate, since many factors have no gradient before others moved."""
    spec = registry.load_spec(method)
    dry = [f"method.{key}={value}" for key, value in TRAINING.items() if key in spec.config.__dataclass_fields__]
    dry += CALIBRATION if spec.traits.calibration else []
    where = [
        f"data_dir={toy}",
        f"run.store={store}",
        "run.device=cpu",
        "precision=float32",
        "task=glue/sst2",
        "task.selection=last",
        "model=tiny_bert",
    ]
    return compose([f"method={method}", *dry, *DRY, *where, "budget.examples=48", *RATE, *more])


def _several() -> list[tuple[str, str]]:
    """Every method that trains by steps, with every way of sharing the work that its traits allow."""
    specs = [registry.load_spec(slug) for slug in registry.files()]
    return [(spec.slug, kind) for spec in specs if steps(spec.traits) for kind in spec.traits.distributed]


@pytest.fixture(scope="module")
def pairs(request: pytest.FixtureRequest, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every pair that is tested here, lived in one group of processes per kind; a new group goes on after one that ended badly."""
    folder = tmp_path_factory.mktemp("pairs")
    asked = [item.callspec.params for item in request.session.items if "pairs" in getattr(item, "fixturenames", ())]
    for kind in {pair["kind"] for pair in asked}:
        left = [pair["method"] for pair in asked if pair["kind"] == kind]
        while left:
            several = [f"compute={kind}", f"compute.processes={PROCESSES}"]
            cells = [(str(folder / f"{method}-{kind}"), container(method, folder / "together", toy, *several)) for method in left]
            log = folder / f"{kind}-{left[0]}-on" / "log.txt"
            log.parent.mkdir()
            if together("fit_each", cells, log=log) == 0:
                break
            ended = next(method for method in left if not (folder / f"{method}-{kind}.json").exists())
            shutil.move(log, folder / f"{ended}-{kind}.log")
            left = left[left.index(ended) + 1 :]
    return folder


@pytest.mark.parametrize(("method", "kind"), _several())
def test_every_method_proves_the_modes_that_it_declares(method: str, kind: str, pairs: Path, toy: Path, tmp_path: Path) -> None:
    ranked.fit(str(tmp_path / "one"), container(method, tmp_path / "alone", toy))
    two, log = pairs / f"{method}-{kind}", pairs / f"{method}-{kind}.log"
    assert not log.exists(), log.read_text()
    (weights, facts), (expected, single) = result(two), result(tmp_path / "one")
    traits = registry.load_spec(method).traits
    assert facts == single and facts["moved"]
    assert traits.sparse or traits.sparse_delta or not facts["still"]  # few entries of few matrices train, or scores that still are zero
    if "forward" not in traits.randomness:
        assert apart(weights, expected) < 1e-5


def test_what_is_computed_once_is_computed_by_the_first_and_read_by_all(toy: Path, tmp_path: Path) -> None:
    cell = container("full_ft", tmp_path / "store", toy)
    assert together("once", str(tmp_path), cell, log=tmp_path / "log.txt") == 0
    assert [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(PROCESSES)] == [[0, [0], [0]], [0, [0], []]]


@pytest.mark.parametrize("number", range(PROCESSES))
def test_an_error_of_one_process_ends_all_and_is_what_the_log_ends_with(number: int, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert together("fail_alone", number, log=log) == worker.ERROR
    if number:
        assert last_lines(log)[-1] == "ValueError: only here"
    assert "ValueError: only here" in log.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".txt"] == ["log.txt"]


def test_weights_that_differ_between_processes_are_an_error(tmp_path: Path) -> None:
    assert together("differ", log=tmp_path / "log.txt") == worker.ERROR
    assert "before training the weights of ranks [1] are not those of rank 0" in (tmp_path / "log.txt").read_text()


def _meanwhile(action: Callable[[], int], started: Callable[[], bool], then: Callable[[], None]) -> int:
    """Run `action` in a thread, do `then` once `started`, and give what `action` returned."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(action()))
    thread.start()
    for _ in range(3000):
        if started() or not thread.is_alive():
            break
        time.sleep(0.01)
    then()
    thread.join(30)
    assert found, "still running"
    return found[0]


def _running() -> list[BaseProcess]:
    return sorted(dispatch._live, key=lambda process: process._identity)


def test_a_request_to_stop_is_agreed_on_and_saved(tmp_path: Path) -> None:
    """SIGTERM reaches one process only; both stop after the same step."""
    out, phase = tmp_path / "out", tmp_path / "phase"
    code = _meanwhile(
        lambda: together("train", str(out), str(phase), "ddp", 4, 400, 0.02, log=tmp_path / "log.txt"),
        lambda: len(list(tmp_path.glob("*.started"))) == PROCESSES,
        lambda: os.kill(_running()[1].pid, signal.SIGTERM),
    )
    assert code == worker.INTERRUPTED
    step = int(training.resumable(phase).name.split("-")[1])
    assert 3 <= step < 400
    assert f"stopped at step {step} of 400" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("victim", range(PROCESSES))
def test_a_killed_process_ends_the_cell_without_a_record(victim: int, toy: Path, tmp_path: Path) -> None:
    line = ["budget.examples=200000", "compute=ddp", f"compute.processes={PROCESSES}"]
    planned = plan.check(_config(container("full_ft", tmp_path / "store", toy, *line)))
    pids: list[int] = []

    def kill() -> None:
        pids.extend(process.pid for process in _running())
        os.kill(pids[victim], signal.SIGKILL)

    begun = lambda: planned.folder.is_dir() and any(planned.folder.glob("checkpoints/main")) and bool(dispatch._live)  # noqa: E731
    outcomes: list[Outcome] = []

    def cell() -> int:
        outcomes.append(dispatch._attempt(planned, lease.take(planned.folder, None), plan.ANEW))
        return outcomes[0].code

    assert _meanwhile(cell, begun, kill) == -signal.SIGKILL
    assert outcomes[0].status == "interrupted"
    assert len(pids) == PROCESSES and not any(psutil.pid_exists(pid) for pid in pids)
    assert Store(tmp_path / "store").record(planned.cell) is None
    assert not list(planned.folder.glob("log.*.txt"))


def _config(values: dict[str, Any]) -> Any:
    """A container as the planner takes it."""
    from omegaconf import OmegaConf

    return OmegaConf.create(values)


def test_a_cell_of_several_processes_leaves_the_record_of_one(toy: Path, tmp_path: Path) -> None:
    line = ["model=tiny_bert", "task=glue/sst2", "method=lora", "method.dropout=0", "budget.examples=64", *DRY]
    line += ["recipe.batch=16", "recipe.lr=1e-2", "precision=float32", f"data_dir={toy}", "run.device=cpu", f"run.assets={tmp_path}"]
    records = []
    for name, more in (("one", []), ("two", ["compute=ddp", f"compute.processes={PROCESSES}", "run.micro_batch=4"])):
        assert run([*line, *more, f"run.store={tmp_path / name}"]) == 0
        (record,) = Store(tmp_path / name).records()
        records.append(record)
    one, two = records
    assert one.cell == two.cell
    for left, right in zip(one.results, two.results, strict=True):
        assert (left.protocol, left.variant, left.n) == (right.protocol, right.variant, right.n)
        assert left.metrics == pytest.approx(right.metrics, abs=1e-5)
        tables = [pq.read_table(tmp_path / name / one.cell / left.predictions).to_pydict() for name in ("one", "two")]
        probabilities = [table.pop("probability") for table in tables]
        assert tables[0] == tables[1]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert one.selection["step"] == two.selection["step"] and one.selection["metric"] == pytest.approx(two.selection["metric"])
    assert [(p.name, p.steps, p.examples, p.tokens) for p in one.phases] == [(p.name, p.steps, p.examples, p.tokens) for p in two.phases]
    for key in ("parameters", "shipped", "memory", "flops", "sparsity"):
        assert one.costs[key] == two.costs[key]
    assert (two.numerics["compute"], two.numerics["processes"]) == ("ddp", PROCESSES) and "processes" not in one.numerics


REFUSED = {
    "a batch that does not divide": ("compute=ddp compute.processes=3", "compute.processes=3 does not divide recipe.batch=32"),
    "micro-batches that do not fit": (
        "compute=ddp compute.processes=2 run.micro_batch=32",
        "compute.processes=2 times run.micro_batch=32 does not divide recipe.batch=32",
    ),
    "no number of processes on a CPU": ("compute=ddp", "finds no accelerators for run.device=cpu; give compute.processes=<number>"),
    "processes without a way to share": ("compute.processes=2", "give compute=ddp or compute=fsdp with it"),
    "one accelerator for several": ("compute=ddp compute.processes=2 run.device=cuda:1", "run.device=cuda:1 is one accelerator"),
    "a method not proved": ("method=magnitude compute=fsdp compute.processes=2", "not proved under compute=fsdp; allowed: single, ddp"),
    "a method without steps": ("method=linear_probe compute=ddp compute.processes=2", "linear_probe makes no optimizer steps"),
    "an unknown kind": ("compute=dpd", "did you mean ddp?"),
    "no process": ("compute=ddp compute.processes=0", "compute.processes=0 is out of range"),
}


@pytest.mark.parametrize(("line", "expected"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_shared_is_refused_with_one_sentence(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["model=tiny_bert", "method=full_ft", "run.device=cpu", *line.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and expected in err
    assert list(tmp_path.iterdir()) == []


def test_more_processes_than_accelerators_are_refused_and_all_of_them_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.config import ComputeConfig
    from harness.resolve import processes, resolve
    from methods.spec import UserError

    def count(kind: str, given: int | None, device: str, gpus: int | None = None) -> int:
        return processes(ComputeConfig(kind, given), replace(run_half, device=device, gpus=gpus))

    run_half = resolve(_config(compose(["method=full_ft"]))).run
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6,7")
    assert [count("ddp", None, "auto"), count("ddp", None, "cuda", 2), count("ddp", 3, "auto")] == [4, 2, 3]
    assert [count("ddp", 5, "cpu"), count("single", None, "cuda:0")] == [5, 1]
    with pytest.raises(UserError, match=r"compute\.processes=5 is more than the 4 accelerators here"):
        count("ddp", 5, "cuda")
    with pytest.raises(UserError, match=r"run\.gpus=2 and compute\.processes=3 contradict each other"):
        count("fsdp", 3, "cuda", 2)


def test_the_way_of_computing_is_no_part_of_the_cell(toy: Path, tmp_path: Path) -> None:
    ids = {plan.check(_config(container("full_ft", tmp_path, toy, *more))).cell for more in ([], ["compute=fsdp", "compute.processes=2"])}
    assert len(ids) == 1
