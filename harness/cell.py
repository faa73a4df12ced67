"""The spine: one cell from its configuration to its record. Read this first."""

import json
import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from harness import export, models
from harness.config import Cell, RunConfig
from harness.context import CellContext
from harness.costing import CostSheet
from harness.evaluation import Evaluator
from harness.guard import check_weights
from harness.identity import Identity, identify
from harness.numerics import numerics, resolve_device
from harness.record import SCHEMA, Record, from_json
from harness.registry import method_class
from harness.resolve import Resolved, resolve
from harness.seeding import seed_everything
from harness.store import Store, write_json
from methods.base import Method, ModelSpec
from methods.spec import Traits
from tasks.base import EvalOptions, Task
from tasks.registry import build
from tasks.sources import Sources

log = logging.getLogger(__name__)
DTYPES = {"float32": "float32", "bf16_autocast": "float32", "bfloat16": "bfloat16"}


def run_cell(container: dict[str, Any]) -> None:
    """Run one resolved configuration up to its unsealed record; `seal` then reloads the export in another process.

    Raises `UserError` for bad input, `guard.Diverged` and `guard.Interrupted`.
    """
    started = time.perf_counter()
    bench = set_up(container)
    ctx, method, seed = bench.ctx, bench.method, bench.cell.seed
    costs = CostSheet(method, bench.traits, ctx, bench.task.head, bench.model)
    seed_everything(seed, "prepare")
    model = method.prepare(bench.model, ctx)
    costs.prepared(model)
    seed_everything(seed, "fit")
    model = method.fit(model, ctx)
    costs.fitted(model)
    measures = method.measure(model, ctx)
    seed_everything(seed, "finalize")
    model = method.finalize(model, ctx)
    check_weights(model)
    for variant, candidate in method.variants(model, ctx):
        bench.evaluator.run(candidate, variant)
    costs.finalized(model)
    export.export(model, ctx.tokenizer, bench.folder / "model")
    record = bench.record(costs.block(bench.folder / "model", model), measures, time.perf_counter() - started)
    write_json(bench.folder / "unsealed.json", record.to_json())


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

    def record(self, costs: dict[str, Any], measures: dict[str, Any], seconds: float) -> Record:
        """The finished cell's record, before the export is verified."""
        return Record(
            schema=SCHEMA, cell=self.identity.cell, status="done", identity=self.identity.canonical,
            origins=self.cell.origins, sweep=self.run.sweep, seed=self.cell.seed,
            deterministic=self.identity.deterministic, model_note=self.cell.model.note, results=self.evaluator.results,
            selection=self.ctx.selection, costs=costs, phases=self.ctx.phases, measures=measures,
            data={role: rows.describe() for role, rows in self.task.splits().items()} | {"weights": self.weights},
            numerics=numerics(self.device, self.cell.precision), sources=self.identity.sources,
            seconds=seconds + self.ctx.earlier_seconds, attempts=len(list((self.folder / "attempts").glob("*.json"))),
        )  # fmt: skip


def set_up(container: dict[str, Any]) -> Bench:
    """Load the model, the task and the method of a configuration; nothing is trained yet."""
    resolved: Resolved = resolve(OmegaConf.create(container))
    cell, run = resolved.cell, resolved.run
    identity = identify(resolved)
    folder = Store(run.store).folder(identity.cell)
    _note_attempt(folder, container)
    device = resolve_device(run.device)
    sources = Sources(resolved.data_dir, Path(run.assets), run.offline)
    task = build(cell.task, sources)
    method = method_class(cell.method)(cell.method_config)
    spec = method.load(ModelSpec(dtype=DTYPES[cell.precision]))
    model, tokenizer, weights = models.load(cell.model, task.head, spec, cell.seed, sources)
    model.to(device)
    autocast = torch.bfloat16 if cell.precision == "bf16_autocast" else None
    evaluator = Evaluator(task, tokenizer, folder, EvalOptions(run.eval_batch, device, autocast), cell.seed)
    ctx = CellContext(cell, run, folder, device, method, task, tokenizer, model, evaluator)
    return Bench(cell, run, identity, folder, device, method, resolved.traits, task, model, weights, ctx, evaluator)


def seal(folder: Path, device: str, keep_model: bool) -> Record:
    """Verify the export in this (fresh) process and write the record: the last act of a cell.

    Raises `export.ExportError` if the exported checkpoint is not the model that was measured.
    """
    unsealed = folder / "unsealed.json"
    if not unsealed.exists() and (sealed := Store(folder.parent).record(folder.name)) is not None:
        return sealed  # another dispatcher ran the same cell and was first
    record = from_json(json.loads(unsealed.read_text()))
    record.costs |= {"export": export.verify(folder / "model", device)}
    Store(folder.parent).write(record)
    for leftover in ("unsealed.json", "outcome.json"):
        with suppress(FileNotFoundError):
            (folder / leftover).unlink()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if not keep_model:
        shutil.rmtree(folder / "model", ignore_errors=True)
        export.probe_file(folder / "model").unlink()
    return record


def _note_attempt(folder: Path, container: dict[str, Any]) -> None:
    attempts = folder / "attempts"
    number = 1 + len(list(attempts.glob("*.json")))
    write_json(attempts / f"{number}.json", {"started": time.time()})
    write_json(folder / "config.json", container)
