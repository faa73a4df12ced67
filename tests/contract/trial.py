"""One short life of a (method, tiny model) pair, observed at every stage; the checks only assert on what is here."""

import copy
import hashlib
import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import cell as spine
from harness import guard, training
from harness.compose import compose
from harness.export import probe_logits
from harness.record import Record
from harness.resolve import resolve
from harness.seeding import seed_everything
from harness.store import Store

STEPS = 4
CALIBRATION = ["calibration.source=boolq_passages", "calibration.sequences=4", "calibration.length=32"]
TASKS = {
    "classification": ["task=glue/sst2", "task.selection=last", "task.max_length=32"],
    "text": ["task=wikitext2", "task.context=32", "task.limit=4"],
}


def content(tensors: dict[str, Tensor]) -> str:
    """A hash of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Observed:
    """What one life showed."""

    logits_loaded: Tensor
    logits_prepared: Tensor
    logits_fitted: Tensor
    logits_final: Tensor
    prepared: dict[str, Tensor]
    fitted: dict[str, Tensor]
    trainable: set[str]
    heads: set[str]
    """Names of the task head's parameters in the prepared model."""
    head: str
    splits: dict[str, str]
    order: dict[str, list[str]] = field(default_factory=dict)
    """Training phase -> hash of the input ids of each of its optimizer steps."""
    final: nn.Module | None = None
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Of the prepared model."""
    method: Any = None
    """The method itself after its life."""


class Trial:
    """Runs lazily: each property is computed once and shared by the checks."""

    def __init__(self, method: str, model: str, root: Path, data: Path) -> None:
        self.method, self.model, self.root, self.data = method, model, root, data
        self.traits = resolve(OmegaConf.create(compose([f"method={method}", "recipe.lr=1e-3"]))).traits
        self.form = "classification" if self.traits.trains else "text"
        self.calibration = CALIBRATION if self.traits.calibration else []

    @cached_property
    def base(self) -> dict[str, Any]:
        """The resolved configuration of this pair; composed once, since composing costs more than a tiny cell."""
        run = ["run.keep_model=true", "run.eval_batch=16", "run.device=cpu"]
        short = [f"budget.examples={16 * STEPS}", "recipe.batch=16", "recipe.lr=1e-3", "budget=smoke"]
        names = [f"method={self.method}", f"model={self.model}", f"data_dir={self.data}"]
        return compose([*names, *TASKS[self.form], *self.calibration, *short, *run])

    def container(self, store: str, *extra: str) -> dict[str, Any]:
        """The configuration with a store of its own and `key=value` changes."""
        cfg = OmegaConf.merge(self.base, OmegaConf.from_dotlist([f"run.store={self.root / store}", *extra]))
        return OmegaConf.to_container(cfg)

    def run(self, store: str, *extra: str) -> Path:
        """Run and seal a cell in this process; its folder."""
        container = self.container(store, *extra)
        spine.run_cell(container)
        folder = self.folder(container)
        spine.seal(folder, "cpu", keep_model=True)
        return folder

    def folder(self, container: dict[str, Any]) -> Path:
        """The cell's folder."""
        resolved = resolve(OmegaConf.create(container))
        return Store(resolved.run.store).folder(spine.identify(resolved).cell)

    @cached_property
    def observed(self) -> Observed:
        """Prepare, fit and finalize by hand, looking at every stage."""
        return observe(self.container("observed"))

    @cached_property
    def straight(self) -> Path:
        """An uninterrupted run."""
        return self.run("straight")

    @cached_property
    def resumed(self) -> Path:
        """The same run, stopped after two steps and started again."""
        container = self.container("resumed")
        with stopping_after(2), suppress(guard.Interrupted):
            spine.run_cell(container)
        return self.run("resumed")

    def record(self, folder: Path) -> Record:
        """The record of a cell folder."""
        record = Store(folder.parent).record(folder.name)
        assert record is not None
        return record


def prepared(container: dict[str, Any], drawn: int = 0) -> dict[str, Tensor]:
    """All parameters and buffers after `prepare`; `drawn` random numbers are drawn first, which must not matter."""
    bench = spine.set_up(container)
    torch.rand(drawn)
    seed_everything(bench.cell.seed, "prepare")
    model = bench.method.prepare(bench.model, bench.ctx)
    return snapshot(model) | buffers(model)


@torch.no_grad()
def nudged_logits(container: dict[str, Any], head: dict[str, Tensor]) -> Tensor:
    """Logits after `prepare` with this head and 0.1 added to whatever else trains: they show draws that no tensor of the model holds."""
    bench = spine.set_up(container)
    seed_everything(bench.cell.seed, "prepare")
    model = bench.method.prepare(bench.model, bench.ctx)
    for name, p in model.named_parameters():
        if name in head:
            p.copy_(head[name])
        elif p.requires_grad:
            p.add_(0.1)
    return probe_logits(model)


def observe(container: dict[str, Any]) -> Observed:
    """One life, looked at from stage to stage."""
    bench = spine.set_up(container)
    order: dict[str, list[str]] = {}
    _spy_on_order(bench, order)
    heads = spine.models.head_names(bench.model)
    head = content({n: p for n, p in bench.model.named_parameters() if n in heads})
    splits = {role: rows.sha256 for role, rows in bench.task.splits().items()}
    loaded = probe_logits(bench.model)
    seed_everything(bench.cell.seed, "prepare")
    model = bench.method.prepare(bench.model, bench.ctx)
    prepared_logits, start, fixed = probe_logits(model), snapshot(model), buffers(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    head_after = spine.models.head_names(model)
    model = bench.method.fit(model, bench.ctx)
    fitted_logits, fitted = probe_logits(model), snapshot(model)
    final = bench.method.finalize(model, bench.ctx)
    return Observed(
        loaded,
        prepared_logits,
        fitted_logits,
        probe_logits(final),
        start,
        fitted,
        trainable,
        head_after,
        head,
        splits,
        order,
        final,
        fixed,
        bench.method,
    )


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all buffers."""
    return {f"buffer:{name}": b.detach().clone() for name, b in model.named_buffers()}


def _spy_on_order(bench: spine.Bench, order: dict[str, list[str]]) -> None:
    """Note the batches of every training phase; what a method reads by itself between phases is not among them."""
    loss, train = bench.method.loss, bench.ctx.train
    running: list[str] = []

    def spying(model: nn.Module, batch: dict[str, Tensor], ctx: Any) -> Tensor:
        if running:
            order.setdefault(running[-1], []).append(content({"ids": batch["input_ids"]}))
        return loss(model, batch, ctx)

    def training_phase(model: nn.Module, phase: str = "main", **options: Any) -> nn.Module:
        running.append(phase)
        fitted = train(model, phase, **options)
        running.pop()
        return fitted

    bench.method.loss, bench.ctx.train = spying, training_phase


@contextmanager
def stopping_after(steps: int):
    """A stop request arrives after so many optimizer steps."""
    asked = training.stop_requested
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count >= steps

    training.stop_requested = stop
    try:
        yield
    finally:
        training.stop_requested = asked


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Tensors of an exported model folder."""
    return {k: v for path in sorted((folder / "model").glob("*.safetensors")) for k, v in load_file(path).items()}


def stable(record: Record) -> dict[str, Any]:
    """The part of a record that must be equal whenever the same cell runs again."""
    data = json.loads(json.dumps(record.to_json()))
    results = [{k: v for k, v in r.items() if k != "seconds"} for r in data["results"]]
    phases = [{k: p[k] for k in ("name", "steps", "examples", "tokens")} for p in data["phases"]]
    costs = copy.deepcopy(data["costs"])
    costs.pop("latency", None)
    return {"results": results, "phases": phases, "costs": costs, "measures": data["measures"], "selection": data["selection"]}
