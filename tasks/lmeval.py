"""Tasks that lm-eval evaluates, on the model in memory: our own definitions on our own rows, or any that lm-eval ships."""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.forward import measuring
from tasks.hashing import content_hash
from tasks.lmeval_own import OWN
from tasks.lmeval_samples import columns
from tasks.rows import first
from tasks.sources import reach_hub
from tasks.spec import LmEvalConfig

FOLDER = Path(__file__).parent / "lmeval_tasks"
SHOTS = "train"
"""Role of the rows that solved examples are drawn from."""


class LmEval(Task):
    """One task, tag or group of lm-eval. Each of its tasks is a part under each of its filters."""

    config: LmEvalConfig

    def splits(self) -> dict[str, Rows]:
        """`evaluation` and, where solved examples are drawn, `train`; for rows that lm-eval loads itself one split per task."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        if self.config.dataset is None:
            return {name: _loaded_rows(task) for name, task in self.tasks.items()}
        found = {role: self.sources.rows(*place) for role, place in self.config.reads().items()}
        rows = found.pop(self.config.split)
        by_row = self.config.builtin or OWN[self.config.task].row_is_document
        return {"evaluation": first(rows, self.config.limit) if by_row else rows} | found

    @cached_property
    def tasks(self) -> dict[str, Any]:
        """lm-eval's task objects by name; `UserError` where there is no such task or its rows cannot be had."""
        if self.config.dataset is None:
            if self.sources.offline:
                raise UserError(f"lm-eval's task {self.config.task} reads its rows from the hub, which run.offline=true forbids")
            reach_hub(f"lm-eval's task {self.config.task} reads its rows from there")
        with _silent():
            return _load(self.config, None if self.config.dataset is None else self._rows_for_lm_eval)

    def _rows_for_lm_eval(self, **_: Any) -> datasets.DatasetDict:
        """What a definition reads: the evaluated rows as `evaluation`, those for solved examples as `shots`."""
        names = {"evaluation": "evaluation", SHOTS: "shots"}
        return datasets.DatasetDict({names[role]: rows.data for role, rows in self.splits().items()})

    def parts(self) -> list[Task]:
        """Every filter of every task; one run of lm-eval, made when the first of them is evaluated, serves them all."""
        run = Run(self)
        return [Part(self, run, name, kept) for name, task in self.tasks.items() for kept in _filters(task)]

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Raises `UserError`: these tasks are evaluated only."""
        raise UserError(f"task={self.config.name} has no training form; use a method that does not train, for instance method=none")

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """Raises `UserError`: the parts are evaluated."""
        raise UserError(f"task={self.config.name} is evaluated by its parts")


class Run:
    """lm-eval's results on one model, computed once."""

    def __init__(self, whole: LmEval) -> None:
        self.whole = whole
        self.done: tuple[nn.Module, dict[str, Any]] | None = None

    def results(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: EvalOptions) -> dict[str, Any]:
        """What `simple_evaluate` returns, samples included; lm-eval's own fixed seeds, no bootstrap."""
        if self.done is None or self.done[0] is not model:
            self.done = (model, self._evaluate(model, tokenizer, options))
        return self.done[1]

    def _evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: EvalOptions) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        from tasks.lmeval_model import InMemory

        config = self.whole.config
        try:
            with _silent(), measuring(model, options):
                return simple_evaluate(
                    InMemory(model, tokenizer, options), tasks=list(self.whole.tasks.values()), num_fewshot=config.shots,
                    limit=config.limit, bootstrap_iters=0, task_manager=_manager(builtin=False),
                )  # fmt: skip
        except (ValueError, AssertionError) as error:
            raise UserError(f"lm-eval refuses task.task={config.task} on this model: {str(error).rstrip('.')}") from error


class Part(Task):
    """One task of lm-eval under one of its filters."""

    config: LmEvalConfig

    def __init__(self, whole: LmEval, run: Run, name: str, kept: str) -> None:
        super().__init__(whole.config, whole.sources)
        self.whole, self.run, self.name, self.kept = whole, run, name, kept
        self.task = whole.tasks[name]

    def protocol(self) -> str:
        """The protocol id of this task under this filter."""
        usual = self.task.get_config("num_fewshot") or 0
        return self.config.reported(self.name, self.kept, usual if self.config.shots is None else self.config.shots)

    def splits(self) -> dict[str, Rows]:
        """`evaluation`: the rows that the documents were made of."""
        splits = self.whole.splits()
        return {"evaluation": splits["evaluation"] if self.config.dataset is not None else first(splits[self.name], self.config.limit)}

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Raises `UserError`, as the whole task does."""
        return self.whole.encode(split, tokenizer)

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """lm-eval's metrics under its own names; the first one of the definition is the primary.

        `predictions` as in `tasks.lmeval_samples.columns`.
        """
        results = self.run.results(model, tokenizer, options)
        values = {key.partition(",")[0]: value for key, value in results["results"][self.name].items() if key.endswith(f",{self.kept}")}
        metrics = {name: float(value) for name, value in values.items() if not name.endswith("_stderr")}
        better = self.task.higher_is_better()
        primary = next(name for name in better if name in metrics)
        samples = [sample for sample in results["samples"][self.name] if sample["filter"] == self.kept]
        return Evaluation(metrics, primary, better[primary], columns(samples, primary))


def _manager(builtin: bool) -> Any:
    """An index of our folder, or of all that lm-eval ships (seconds)."""
    from lm_eval.tasks import TaskManager

    return TaskManager() if builtin else TaskManager(include_path=str(FOLDER), include_defaults=False)


def _load(config: LmEvalConfig, rows: Callable[..., datasets.DatasetDict] | None) -> dict[str, Any]:
    """The tasks that a name stands for; with `rows` they read these instead of what they name."""
    manager = _manager(config.builtin)
    if config.task not in manager.all_tasks:
        close = difflib.get_close_matches(config.task, manager.all_tasks, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"task.task={config.task} is no task of lm-eval {version('lm_eval')}{hint}")
    try:
        return manager.load(config.task if rows is None else _on_our_rows(config, rows))["tasks"]
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        source = "the hub" if rows is None else f"dataset {config.dataset}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        raise UserError(f"lm-eval's task {config.task} cannot be made from {source}: {reason}") from error


def _on_our_rows(config: LmEvalConfig, rows: Callable[..., datasets.DatasetDict]) -> dict[str, Any]:
    """A group of one task: the public way in which lm-eval lets keys of a definition be replaced."""
    own_rows = {"custom_dataset": rows, "training_split": None, "validation_split": None, "test_split": "evaluation"}
    shots = {"fewshot_split": "shots" if config.shots else None, "num_fewshot": config.shots}
    return {"group": "parebench", "task": [{"task": config.task, **own_rows, **shots}]}


def _filters(task: Any) -> list[str]:
    return [kept.name for kept in task._filters]


def _loaded_rows(task: Any) -> Rows:
    """The documents of a task that lm-eval loaded, hashed like any rows; a revision only where the definition pins one."""
    documents = task.eval_docs
    data = documents if isinstance(documents, datasets.Dataset) else datasets.Dataset.from_list(list(documents))
    split = task.get_config("test_split") or task.get_config("validation_split") or "evaluation"
    revision = (task.get_config("dataset_kwargs") or {}).get("revision", "not pinned by lm-eval")
    name = "/".join(filter(None, (task.get_config("dataset_path"), task.get_config("dataset_name"))))
    return Rows(data, "hub", name, split, revision, content_hash(data.with_format("arrow")[:]))


@contextmanager
def _silent() -> Iterator[None]:
    """Without lm-eval's messages below an error."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
