"""The spine: one cell from its configuration to its record. Read this first."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from harness import (
    distributed,
    export,
    lease,
    models,
    needed,
    origin,
    peft_export,
    protocols,
    remake,
    sparse_delta,
    sparse_export,
    stale,
)
from harness.config import DTYPES, Cell, RunConfig
from harness.context import CellContext
from harness.costing import CostSheet
from harness.evaluation import Evaluator, eval_options
from harness.guard import check_weights
from harness.identity import Identity, identify
from harness.needs import INIT
from harness.numerics import numerics, resolve_device
from harness.protocols import BEFORE, MAIN
from harness.record import SCHEMA, Record, from_json
from harness.registry import method_class
from harness.resolve import Resolved, resolve
from harness.seeding import seed_everything
from harness.store import Store, remove, write_json
from harness.typed import plain
from harness.worker import UNSEALED, interruptible
from methods.base import Method, ModelSpec
from methods.spec import Traits
from tasks.base import Task
from tasks.registry import build
from tasks.sources import Sources

log = logging.getLogger(__name__)


def run_cell(container: dict[str, Any]) -> None:
    """Run one resolved configuration up to its unsealed record; `seal` then reloads the export in another process.

    Raises `UserError` for bad input, `guard.Diverged` and `guard.Interrupted`.
    """
    started = time.perf_counter()
    bench = set_up(container)
    ctx, method, seed = bench.ctx, bench.method, bench.cell.seed
    bench.measure_before()
    costs = CostSheet(method, bench.traits, ctx, bench.task.head, bench.model)
    seed_everything(seed, "prepare")
    model = method.prepare(bench.model, ctx)
    costs.prepared(model)
    seed_everything(seed, "fit")
    model = method.fit(model, ctx)
    if not distributed.leave():
        return  # of several processes the first alone goes on
    costs.fitted(model)
    measures = method.measure(model, ctx)
    factors = peft_export.kept(method.lora(model)) if bench.traits.exports_lora and bench.run.keep_model else {}
    seed_everything(seed, "finalize")
    model = method.finalize(model, ctx)
    check_weights(model)
    for variant, candidate in method.variants(model, ctx):
        with interruptible():
            bench.evaluate(candidate, variant)
    costs.finalized(model)
    unfolded = None if bench.traits.folds else export.unfolded(bench.cell.method, method)
    stock = export.export(model, ctx.tokenizer, bench.folder / "model", unfolded)
    if factors:
        peft_export.write(stock, factors, bench.cell.model, bench.folder / peft_export.FOLDER)
    block = costs.block(bench.folder / "model", stock) | bench.small_forms(stock)
    record = bench.record(block, measures, time.perf_counter() - started)
    write_json(bench.folder / UNSEALED, record.to_json())


@dataclass
class Bench:
    """Everything that one cell works with."""

    cell: Cell
    run: RunConfig
    identity: Identity
    folder: Path
    device: str
    method: Method
    traits: Traits
    """As they hold under the method's configuration."""
    task: Task
    model: nn.Module
    weights: dict[str, Any]
    """Where the model's weights came from (`harness.models.load`)."""
    ctx: CellContext
    evaluator: Evaluator
    processes: int
    """How many processes train."""
    protocols: dict[str, Evaluator]
    """More tasks that the main variant is measured on; their results are among those of `evaluator`."""
    forgetting: tuple[str, ...]
    """Those of `protocols` that the model is measured on as it is loaded, too."""
    loaded: Callable[[], nn.Module]
    """The model as it was loaded, read once more, on the CPU."""

    def measure_before(self) -> None:
        """Measure the model as it was loaded, where that is asked for; once per cell, in its first process."""
        if self.forgetting:
            self.evaluator.restore(BEFORE, self.ctx.once("forgetting-before", self._before))

    def _before(self) -> list[dict[str, Any]]:
        tasks = [self.protocols[name] for name in self.forgetting]
        return [asdict(result) for more in tasks for result in more.run(self.model, BEFORE)]

    def evaluate(self, model: nn.Module, variant: str) -> None:
        """Measure one of the cell's models."""
        self.evaluator.run(model, variant)
        for more in self.protocols.values() if variant == MAIN else ():
            more.run(model, variant)

    def small_forms(self, stock: nn.Module) -> dict[str, Any]:
        """Leave the export without its zeros, and what must be added to the base to have it, where the traits say that these are small.

        Returns what they cost; without `keep_model` nothing else stays of them.
        """
        costs: dict[str, Any] = {}
        if self.traits.sparse:
            costs["packed"] = sparse_export.write(self.folder / "model", self.folder / sparse_export.FILE)
        if self.traits.sparse_delta:
            delta = sparse_delta.between(self.loaded(), stock)
            costs["delta"] = sparse_delta.write(delta, stock, self.cell.model, self.folder / sparse_delta.FOLDER)
        for left in () if self.run.keep_model else (sparse_export.FILE, sparse_delta.FOLDER):
            remove(self.folder / left)
        return costs

    def record(self, costs: dict[str, Any], measures: dict[str, Any], seconds: float) -> Record:
        """The finished cell's record, before the export is verified."""
        store, needs = Store(self.run.store), self.identity.needs
        costs |= {"inherited": needed.inherited(store, needs)} if needs else {}
        return Record(
            schema=SCHEMA, cell=self.identity.cell, status="done", identity=self.identity.canonical,
            origins=self.cell.origins, sweep=self.run.sweep, seed=self.cell.seed,
            deterministic=self.identity.deterministic, model_note=self.cell.model.note, results=self.evaluator.results,
            selection=self.ctx.selection, costs=costs, phases=self.ctx.phases, measures=measures,
            data=self.rows() | {"weights": self.weights},
            numerics=numerics(self.device, self.cell.precision, self.ctx.compute, self.processes), sources=self.identity.sources,
            seconds=seconds + self.ctx.earlier_seconds, attempts=lease.count(self.folder),
            dependencies=origin.dependencies(store, needs),
            protocols={name: plain(more.task.config) for name, more in self.protocols.items()},
        )  # fmt: skip

    def rows(self) -> dict[str, Any]:
        """What is kept of the rows of every split, and of the texts that were calibrated and trained on."""
        own = {role: rows.describe() for role, rows in self.task.splits().items()}
        texts = {"calibration": self.ctx.calibrated, "train": self.ctx.read}
        read = {name: read for name, read in texts.items() if read}
        more = {f"{name}:evaluation": task.task.splits()["evaluation"].describe() for name, task in self.protocols.items()}
        return own | read | more


def set_up(container: dict[str, Any]) -> Bench:
    """Load the model, the task and the method of a configuration; nothing is trained yet."""
    resolved: Resolved = resolve(OmegaConf.create(container))
    cell, run = resolved.cell, resolved.run
    identity = identify(resolved)
    folder = Store(run.store).folder(identity.cell)
    device = distributed.start(resolve_device(run.device))
    if distributed.is_main():
        write_json(folder / "config.json", container)
    sources = Sources(resolved.data_dir, Path(run.assets), run.offline)
    task = build(cell.task, sources)
    method = method_class(cell.method)(cell.method_config)
    spec = method.load(ModelSpec(dtype=DTYPES[cell.precision]))
    load = partial(models.load, cell.model, task.head, spec, cell.seed, sources)
    model, tokenizer, weights = load()
    task.attach(model)
    model.to(device)
    evaluator = Evaluator(task, tokenizer, folder, eval_options(cell, run, device), cell.seed)
    earlier = remake.awaited(Store(run.store), identity.cell)
    tasks = protocols.of_remade(earlier[1], resolved, stale.today_of) if earlier else resolved.protocols
    forgetting = dict.fromkeys([*(protocols.before_of_remade(earlier[1], tasks) if earlier else ()), *resolved.forgetting])
    more = {name: replace(evaluator, task=build(config, sources)) for name, config in tasks.items()}
    ctx = CellContext(
        cell, run, folder, device, method, task, tokenizer, model, evaluator, resolved.compute.kind, drawn=tuple(weights["missing"]),
        needs=identity.needs,
    )  # fmt: skip

    def initialised(model: nn.Module) -> nn.Module:
        if INIT in identity.needs:
            models.take_backbone(model, ctx.cell(INIT))
        return model

    initialised(model)
    return Bench(
        cell, run, identity, folder, device, method, resolved.traits, task, model, weights, ctx, evaluator, distributed.world(), more,
        tuple(forgetting), lambda: initialised(load()[0]),
    )  # fmt: skip


def seal(folder: Path, device: str, keep_model: bool) -> Record:
    """Verify the export in this (fresh) process and write the record: the last act of a cell.

    Raises `export.ExportError` if the exported checkpoint is not the model that was measured, and `remake.NotReproducedError` if it
    takes the place of a record that it does not reproduce.
    """
    unsealed = folder / UNSEALED
    record = from_json(json.loads(unsealed.read_text()))
    record.costs |= {"export": export.verify(folder / "model", device)}
    record.attempts = lease.count(folder)  # an attempt that only seals counts too
    record.weights = export.weights_hash(folder / "model")
    store = Store(folder.parent)
    if earlier := remake.awaited(store, record.cell):
        record.remade = remake.compare(earlier[1], record, earlier[0])
    store.write(record)
    remake.release(store, record.cell)
    for leftover in (UNSEALED, "outcome.json"):
        with suppress(FileNotFoundError):
            (folder / leftover).unlink()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)
        export.probe_file(folder / "model").unlink()
    return record
