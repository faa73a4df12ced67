"""Measuring one protocol on one model: seeds, files of per-example predictions, results."""

import re
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.config import Cell, RunConfig
from harness.guard import check_finite
from harness.record import Result
from harness.seeding import seed_everything
from harness.store import write_json
from tasks.base import EvalOptions, Evaluation, Task


def file_name(protocol: str, variant: str) -> str:
    """A file name for a protocol id and a variant."""
    return re.sub(r"[^A-Za-z0-9.@=-]+", "_", f"{protocol}.{variant}").strip("_")


def eval_options(cell: Cell, run: RunConfig, device: str) -> EvalOptions:
    """How the models of a cell are evaluated."""
    return EvalOptions(run.eval_batch, device, torch.bfloat16 if cell.precision == "bf16_autocast" else None)


@dataclass
class Evaluator:
    """Evaluates a cell's task and collects the results."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    options: EvalOptions
    seed: int
    results: list[Result] = field(default_factory=list)
    vouched: Collection[str] = ()
    """Files of the cell that a record vouches for and that are therefore not written again."""
    numerics: dict[str, Any] = field(default_factory=dict)
    """What it is measured with, where that is not the record's."""

    def measure(self, model: nn.Module, split: str, part: Task | None = None) -> Evaluation:
        """The evaluation of the task (or a part of it) on a split, with generators seeded by purpose; the mode of the model is put back."""
        seed_everything(self.seed, "evaluate", split)
        training = model.training
        model.eval()
        evaluation = (part or self.task).evaluate(model, self.tokenizer, split, self.options)
        model.train(training)
        check_finite(evaluation.primary, evaluation.metrics[evaluation.primary], -1)
        return evaluation

    def run(self, model: nn.Module, variant: str) -> list[Result]:
        """Measure the reported rows of every part of the task; writes predictions and results under `evals/`."""
        return [self._part(part, model, variant) for part in self.task.parts()]

    def _part(self, part: Task, model: nn.Module, variant: str) -> Result:
        protocol = part.protocol()
        started = time.perf_counter()
        evaluation = self.measure(model, "evaluation", part)
        seconds = time.perf_counter() - started
        rows = part.splits()["evaluation"]
        target = self._target(file_name(protocol, variant))
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(evaluation.predictions), target)
        result = Result(
            protocol=protocol, variant=variant, metrics=evaluation.metrics, primary=evaluation.primary,
            higher_is_better=evaluation.higher_is_better, n=len(evaluation.predictions["example"]), rows=rows.describe(),
            predictions=f"evals/{target.name}", version=part.config.version, seconds=seconds,
            task=self.task.config.name, numerics=self.numerics, tokenizer=evaluation.tokenizer,
        )  # fmt: skip
        write_json(target.with_suffix(".json"), asdict(result))
        self.results.append(result)
        return result

    def _target(self, name: str) -> Path:
        taken = {Path(file).stem for file in self.vouched}
        free = next(free for free in chain([name], (f"{name}.{n}" for n in count(2))) if free not in taken)
        return self.folder / "evals" / f"{free}.parquet"

    def restore(self, variant: str, results: list[dict[str, Any]]) -> None:
        """Take back the results of a variant as an earlier attempt of this cell had them after a phase."""
        others = [result for result in self.results if result.variant != variant]
        self.results[:] = others + [Result(**values) for values in results]  # in place: evaluators of other tasks share the list
