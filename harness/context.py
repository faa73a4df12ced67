"""The services that a method is given while its cell runs (`methods.base.Context`)."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from harness import checkpoint, distributed, external_weights, needed
from harness.batching import collator
from harness.config import DTYPES, Cell, Recipe, RunConfig
from harness.cost import PeakMeter
from harness.evaluation import Evaluator
from harness.kvcache import uncached
from harness.ledger import optimizer_state_bytes
from harness.record import Phase
from harness.seeding import derive, generator, seed_everything, untouched_generators
from harness.store import Store, write_json
from harness.training import HostTrainer, Listener, PhasePlan, Progress, read_state, resumable, run_phase, settings_of, write_state
from methods.base import Adapter, Batch, Method
from methods.spec import UserError
from tasks import calibration
from tasks.base import Task
from tasks.encoding import scored_after

T = TypeVar("T")


@dataclass
class CellContext:
    """One cell's services and what they metered."""

    config: Cell
    run: RunConfig
    folder: Path
    device: str
    method: Method
    task: Task
    tokenizer: PreTrainedTokenizerBase
    model: nn.Module
    """The model as loaded; batches are put on its device."""
    evaluator: Evaluator
    compute: str = "single"
    """How several processes share the training phases: `single`, `ddp` or `fsdp`."""
    phases: list[Phase] = field(default_factory=list)
    selection: dict[str, Any] = field(default_factory=dict)
    optimizer_bytes: int = 0
    """Bytes of optimizer state at the end of the last training phase."""
    calibrated: dict[str, Any] = field(default_factory=dict)
    """What calibration text was drawn: its rows, and the hash of its token ids; empty where the method asked for none."""
    read: dict[str, Any] = field(default_factory=dict)
    """Likewise of the text that was trained on in place of a task's own rows."""
    earlier_seconds: float = 0.0
    """Seconds of training that earlier attempts of this cell left in what was restored or resumed."""
    drawn: tuple[str, ...] = ()
    """Parameters of the task head that the model's checkpoint lacked."""
    needs: dict[str, str] = field(default_factory=dict)
    """Name -> cell id of the finished cells that this one is made from."""

    def __post_init__(self) -> None:
        self.seed = self.config.seed
        self.prefix, self.share, self.selects = "", 1.0, True
        self.settings = settings_of(self.config.recipe)
        self._examples: dict[str, list[dict[str, Any]]] = {}
        self.total_steps = self.steps(1.0)
        self._calibration: Tensor | None = None
        self._counts: Progress | None = None
        self._accounted: set[str] = set()
        self._trainer: HostTrainer | None = None

    def examples(self, split: str) -> list[dict[str, Any]]:
        """Encoded examples of a split, in the order of its rows."""
        if split not in self._examples:
            own = split != "train" or self.config.corpus is None
            self._examples[split] = self.task.encode(split, self.tokenizer) if own else self._corpus()
        return self._examples[split]

    def _corpus(self) -> list[dict[str, Any]]:
        """Rows of the training text, as many as the budget sees; what they are is kept in `read`."""
        corpus = self.config.corpus
        source = calibration.SOURCES[corpus.source]
        rows = self.task.sources.rows(source.dataset, source.split)
        documents = rows.data[source.column][:]
        ids = calibration.drawn(documents, self._encode_plain, source, self.config.budget.examples, corpus.length, self.seed)
        self.read = {**rows.describe(), "sequences": len(ids), "length": corpus.length, "ids_sha256": calibration.ids_hash(ids)}
        return [scored_after([], row, corpus.length) for row in ids]

    def steps(self, share: float) -> int:
        """Optimizer steps that `share` of the cell's budget pays for."""
        examples = self.config.budget.examples
        if examples is None:
            examples = int(self.config.recipe.epochs * self.train_rows())
        return max(1, round(examples * self.share * share / self.config.recipe.batch))

    def train_rows(self) -> int:
        """Number of training rows; 0 where the task has none."""
        if self.config.corpus is not None:
            return len(self.examples("train"))
        splits = self.task.splits()
        return len(splits["train"].data) if "train" in splits else 0

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator seeded from (seed, name)."""
        return generator(self.seed, "method", self.prefix + name)

    @contextmanager
    def stage(self, name: str, method: Method, recipe: Recipe, share: float, selects: bool) -> Iterator[None]:
        """One step of a chain."""
        outer = self.method, self.config, self.prefix, self.share, self.selects
        self._enter(method, replace(self.config, recipe=recipe), f"{name}.", share, selects)
        yield
        self._enter(*outer)

    def _enter(self, method: Method, config: Cell, prefix: str, share: float, selects: bool) -> None:
        self.method, self.config, self.prefix, self.share, self.selects = method, config, prefix, share, selects
        self.settings, self.total_steps = settings_of(config.recipe), self.steps(1.0)

    def cell(self, name: str) -> nn.Module:
        """The exported model of a finished cell that this one needs, loaded anew at every call."""
        model = needed.model(Store(self.run.store), self.needs, self.prefix + name, self.device, DTYPES[self.config.precision])
        self.task.attach(model)
        return model

    def external(self) -> nn.Module | Adapter:
        """What lies where the method's configuration says."""
        found = external_weights.read(self.config, self.model, self.tokenizer, self.task.head, self.drawn, self.run.offline)
        if isinstance(found, Adapter):
            return found
        self.task.attach(found)
        return found.to(self.device)

    def calibration(self) -> Tensor:
        """Token ids (sequences, length), drawn once; what they are is kept in `calibrated`.

        Raises `UserError` where the text is too short; `ValueError` for a method without the trait `calibration`.
        """
        config = self.config.calibration
        if config is None or config.length is None:
            raise ValueError(f"{self.config.method} has no trait calibration")
        if self._calibration is None:
            source = calibration.SOURCES[config.source]
            rows = self.task.sources.rows(source.dataset, source.split)
            seed = self.seed if config.seed is None else config.seed
            ids = calibration.draw(rows.data[source.column][:], self._encode_plain, source, config.sequences, config.length, seed)
            self.calibrated = {**rows.describe(), "sequences": len(ids), "length": config.length, "ids_sha256": calibration.ids_hash(ids)}
            self._calibration = torch.tensor(ids)
        return self._calibration

    def _encode_plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        """Padded batches of the first `n` rows (at most the budget's examples) in the cell's own row order."""
        examples = self.examples(split)
        order = torch.randperm(len(examples), generator=generator(self.seed, "rows", split)).tolist()
        limit = min(filter(None, (n, self.config.budget.examples, len(examples))))
        collate, size = collator(self.tokenizer), self.run.eval_batch
        for start in range(0, limit, size):
            chosen = order[start : min(start + size, limit)]
            batch = collate([examples[i] for i in chosen])
            if self._counts is not None:
                self._counts.examples += len(chosen)
                self._counts.tokens += int(batch["attention_mask"].sum())
            yield {key: value.to(self.device) for key, value in batch.items()}

    def once(self, name: str, fn: Callable[[], T]) -> T:
        """Tensors (a dict of them) or JSON, computed once per cell (by its first process) and read back after a resume.

        Phases that `fn` metered are kept beside the value and come back with it, so that a record does not depend on a resume.
        """
        name = self.prefix + name
        folder = self.folder / "once" / name
        if distributed.is_main() and not checkpoint.verified(folder):
            earlier = len(self.phases)
            value = fn()
            notes = [asdict(phase) for phase in self.phases[earlier:]]
            self._accounted.add(name)
            checkpoint.write_sealed(folder, lambda aside: _write_value(aside, value, notes))
            if distributed.world() == 1:
                return value
        distributed.barrier()
        self._account(name, folder / "phases.json")
        tensors = folder / "value.safetensors"
        return load_file(tensors) if tensors.exists() else json.loads((folder / "value.json").read_text())

    def _account(self, name: str, notes: Path) -> None:
        """Take the phases of a value that an earlier attempt computed into the record, once."""
        if name in self._accounted or not notes.exists():
            return
        self._accounted.add(name)
        phases = [Phase(**phase) for phase in json.loads(notes.read_text())]
        self.phases += phases
        self.earlier_seconds += sum(phase.seconds for phase in phases)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Meter a block of the method's own work."""
        name = self.prefix + name
        seed_everything(self.seed, "phase", name)
        self._counts = Progress()
        with PeakMeter(self.device) as meter:
            yield
        self._close(name, self._counts, meter)
        self._counts = None

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True, order: str = "") -> nn.Module:
        """Train what requires gradients; restored if finished, resumed if interrupted."""
        phase = self.prefix + phase
        folder = self.folder / "checkpoints" / phase
        final = folder / "final"
        if checkpoint.verified(final):
            read_state(final, model, self.method)
            self._restore_notes(final)
            return model
        plan = self._plan(phase, share, select, order, folder)
        self.total_steps = plan.steps
        seed_everything(self.seed, "train", phase)
        with PeakMeter(self.device) as meter, uncached(model):
            listener = PhaseListener(self, phase, meter, _earlier_seconds(folder))
            trainer = HostTrainer(model, self.method, self, plan, self.examples("train"), collator(self.tokenizer), listener)
            listener.rewind(plan)
            self.earlier_seconds += listener.earlier
            self._trainer = trainer
            progress = run_phase(trainer)
            self._trainer = None
        self.optimizer_bytes = optimizer_state_bytes(trainer.optimizer.optimizer)
        progress.seconds = listener.seconds()
        self._keep_selected(model, plan, progress)
        self._close(phase, progress, meter)
        if distributed.is_main():
            checkpoint.write_sealed(final, lambda aside: self._write_final(aside, model))
        distributed.barrier()
        return model

    def add_parameters(self, parameters: list[nn.Parameter], like: nn.Parameter, *, restart: bool = False) -> None:
        """Train new parameters from the next step on. `RuntimeError` while nothing trains."""
        if self._trainer is None:
            raise RuntimeError("add_parameters is for `on_update` of a running training phase")
        self._trainer.add_parameters(parameters, like, restart)

    def score(self, model: nn.Module) -> float:
        """The selection metric, larger is better. Draws nothing from the global generators."""
        if not self._selects():
            raise UserError(f"task={self.config.task.name} has no selection rows to compare models on; give task.selection=heldout")
        return self.selection_metric(model)[2]

    def selection_metric(self, model: nn.Module) -> tuple[str, float, float]:
        """Name of the task's metric, its value on the selection rows, and the same with the sign that makes larger better."""
        with untouched_generators():
            evaluation = self.evaluator.measure(model, "selection")
        value = evaluation.metrics[evaluation.primary]
        return evaluation.primary, value, value if evaluation.higher_is_better else -value

    def _plan(self, phase: str, share: float, select: bool, order: str, folder: Path) -> PhasePlan:
        recipe, steps = self.config.recipe, self.steps(share)
        micro = self.run.micro_batch or recipe.batch // distributed.world()
        n = self.config.budget.evaluations
        evaluate_at = sorted({max(1, round(steps * i / n)) for i in range(1, n + 1)}) if select and self.selects and self._selects() else []
        return PhasePlan(
            name=phase, folder=folder, steps=steps, recipe=recipe, micro_batch=micro, device=self.device,
            autocast=self.config.precision == "bf16_autocast", seed=derive(self.seed, "order", *filter(None, [order])),
            checkpoint_steps=self.run.checkpoint_steps, evaluate_at=tuple(evaluate_at),
            compute=self.compute if distributed.world() > 1 else "single",
        )  # fmt: skip

    def _selects(self) -> bool:
        return "selection" in self.task.splits()

    def _keep_selected(self, model: nn.Module, plan: PhasePlan, progress: Progress) -> None:
        """Measure the last state under `@last`, then go back to the best eligible one."""
        if not plan.evaluate_at:
            return
        rule = getattr(self.task.config, "selection", "last")
        self.selection = {
            "rule": rule, "phase": plan.name, "last_step": plan.steps,
            "step": progress.best_step or plan.steps, "metric": progress.best_value,
        }  # fmt: skip
        if distributed.is_main():
            with untouched_generators():
                self.evaluator.run(model, "last")
        if progress.best_step not in (None, plan.steps):
            read_state(plan.folder / f"best-{progress.best_step}", model, self.method)

    def _close(self, name: str, progress: Progress, meter: PeakMeter) -> None:
        seconds = progress.seconds or meter.seconds
        self.phases.append(Phase(name, progress.steps, progress.examples, progress.tokens, seconds, meter.peak_rss, meter.peak_device))

    def _write_final(self, folder: Path, model: nn.Module) -> None:
        write_state(folder, model, self.method)
        own = [asdict(result) for result in self.evaluator.results if result.variant == "last"]
        notes = {"phase": asdict(self.phases[-1]), "selection": self.selection, "optimizer_bytes": self.optimizer_bytes, "last": own}
        write_json(folder / "notes.json", notes)

    def _restore_notes(self, folder: Path) -> None:
        notes = json.loads((folder / "notes.json").read_text())
        self.phases.append(Phase(**notes["phase"]))
        self.earlier_seconds += self.phases[-1].seconds
        self.selection, self.optimizer_bytes = notes["selection"], notes["optimizer_bytes"]
        self.evaluator.restore("last", notes["last"])


class PhaseListener(Listener):
    """Writes the learning curve and computes selection metrics for one phase."""

    def __init__(self, ctx: CellContext, phase: str, meter: PeakMeter, earlier: float) -> None:
        self.ctx, self.phase, self.meter, self.earlier = ctx, phase, meter, earlier
        self.file = ctx.folder / "history.jsonl"
        self.steps = 0

    def rewind(self, plan: PhasePlan) -> None:
        """Drop lines of this phase that the newest checkpoint does not include; training will write them again."""
        self.steps = plan.steps
        if not distributed.is_main():
            return
        folder = resumable(plan.folder)
        step = int(folder.name.split("-")[1]) if folder else 0
        if self.file.exists():
            lines = _whole_lines(self.file)
            kept = [line for line in lines if line["phase"] != self.phase or line["step"] <= step]
            self.file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._reached(step)

    def history(self, entry: dict[str, Any]) -> None:
        if not distributed.is_main():
            return
        with self.file.open("a") as file:
            file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._reached(entry["step"])

    def _reached(self, step: int) -> None:
        """What a live view and `parebench-sweep status` read; a loss of power may lose it."""
        progress = {"phase": self.phase, "step": step, "steps": self.steps}
        write_json(self.ctx.folder / "progress.json", progress, durable=False)

    def seconds(self) -> float:
        return self.earlier + self.meter.seconds

    def selection_metric(self, model: nn.Module, step: int) -> float:
        name, value, signed = self.ctx.selection_metric(model)
        self.history({"phase": self.phase, "step": step, f"selection/{name}": value})
        return signed


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    """The entries of a learning curve; a kill may have torn its last line, a loss of power any."""
    found: list[dict[str, Any]] = []
    for line in file.read_text(errors="replace").splitlines(True):
        with suppress(ValueError):
            found += [json.loads(line)] if line.endswith("\n") else []
    return found


def _earlier_seconds(folder: Path) -> float:
    newest = resumable(folder)
    return json.loads((newest / "progress.json").read_text())["seconds"] if newest else 0.0


def _write_value(folder: Path, value: Any, phases: list[dict[str, Any]]) -> None:
    if phases:
        write_json(folder / "phases.json", phases)
    if isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values()):
        checkpoint.save_tensors(folder / "value.safetensors", value)
    else:
        write_json(folder / "value.json", value)
