"""From a task's configuration to the task."""

from typing import Any

from tasks.base import Task
from tasks.choice import Choice
from tasks.classification import Classification
from tasks.instruct import Instruct
from tasks.lmeval import LmEval
from tasks.mixture import Mixture
from tasks.perplexity import Perplexity
from tasks.resample import Resample
from tasks.solution import Solution
from tasks.spec import KINDS, TaskConfig
from tasks.verbal import Verbal

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "mixture": Mixture,
    "choice": Choice,
    "perplexity": Perplexity,
    "instruct": Instruct,
    "verbal": Verbal,
    "solution": Solution,
    "lmeval": LmEval,
    "resample": Resample,
}
assert TASKS.keys() == KINDS.keys()


def build(config: TaskConfig, sources: Any) -> Task:
    """The task of `config.kind`; `sources.rows(dataset, split)` gives its rows (see `tasks/sources.py`)."""
    return TASKS[config.kind](config, sources)
