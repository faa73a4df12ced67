"""Measuring one protocol on one model: seeds, files of per-example predictions, results."""

import json
import re
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn
from transformers import PreTrainedTokenizerBase

from harness.guard import check_finite
from harness.record import Result
from harness.seeding import seed_everything
from harness.store import write_json
from tasks.base import EvalOptions, Evaluation, Task


def file_name(protocol: str, variant: str) -> str:
    """A file name for a protocol id and a variant."""
    return re.sub(r"[^A-Za-z0-9.@=-]+", "_", f"{protocol}.{variant}").strip("_")


@dataclass
class Evaluator:
    """Evaluates a cell's task and collects the results."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    options: EvalOptions
    seed: int
    results: list[Result] = field(default_factory=list)

    def measure(self, model: nn.Module, split: str) -> Evaluation:
        """The task's evaluation on a split, with generators seeded by purpose; the mode of the model is put back."""
        seed_everything(self.seed, "evaluate", split)
        training = model.training
        model.eval()
        evaluation = self.task.evaluate(model, self.tokenizer, split, self.options)
        model.train(training)
        check_finite(evaluation.primary, evaluation.metrics[evaluation.primary], -1)
        return evaluation

    def run(self, model: nn.Module, variant: str) -> Result:
        """Measure the reported rows; writes predictions and the result under `evals/`."""
        protocol = self.task.config.protocol()
        started = time.perf_counter()
        evaluation = self.measure(model, "evaluation")
        seconds = time.perf_counter() - started
        rows = self.task.splits()["evaluation"]
        name = file_name(protocol, variant)
        target = self.folder / "evals" / f"{name}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(evaluation.predictions), target)
        result = Result(
            protocol=protocol, variant=variant, metrics=evaluation.metrics, primary=evaluation.primary,
            higher_is_better=evaluation.higher_is_better, n=len(evaluation.predictions["example"]), rows=rows.describe(),
            predictions=f"evals/{target.name}", version=self.task.config.version, seconds=seconds,
        )  # fmt: skip
        write_json(target.with_suffix(".json"), asdict(result))
        self.results.append(result)
        return result

    def restore(self, variant: str) -> None:
        """Take back results of a variant that an earlier attempt of this cell wrote."""
        for path in sorted((self.folder / "evals").glob(f"*.{variant}.json")):
            self.results.append(Result(**json.loads(path.read_text())))
