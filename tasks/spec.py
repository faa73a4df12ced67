"""The typed configuration of tasks. Torch-free, so that configuration stays fast."""

from dataclasses import dataclass

from methods.spec import UserError, choice, number
from tasks.datasets import DATASETS

SELECTIONS = ("last", "heldout", "dev_best")


def rows_suffix(limit: int | None) -> str:
    """The part of a protocol id that names a prefix of the rows: `[:300]`, or nothing for all rows."""
    return "" if limit is None else f"[:{limit}]"


def split_suffix(dataset: str, split: str) -> str:
    """The part of a protocol id that names a split other than the one that papers report (test where there is one): `-train`."""
    splits = DATASETS[dataset].splits if dataset in DATASETS else {}
    return "" if split == ("test" if "test" in splits else "validation") else f"-{split}"


def _limit(limit: int | None) -> None:
    if limit is not None:
        number("task.limit", limit, 1)


@dataclass
class ClassificationConfig:
    """Sequence classification or regression with a head (GLUE)."""

    name: str
    """How tables call the task, for instance `glue/sst2`."""
    kind: str
    dataset: str
    """Key of `tasks/datasets.py`."""
    metric: str
    """The primary metric, for instance `accuracy` or `matthews`."""
    rows: str
    """`official` = train and dev as published; `val-split` = the dev rows alone, split by a fixed seed."""
    selection: str
    """Which checkpoint is reported: `last`, `heldout` (chosen on rows taken from train) or `dev_best` (as papers do)."""
    max_length: int
    limit: int | None
    """Evaluate the first rows only; None = all."""
    version: int
    """Bumped when the protocol's numbers change."""

    def __post_init__(self) -> None:
        choice("task.rows", self.rows, ("official", "val-split"))
        choice("task.selection", self.selection, SELECTIONS)
        number("task.max_length", self.max_length, 8)
        _limit(self.limit)
        if self.rows == "val-split" and self.selection != "last":
            raise UserError(
                f"task.selection={self.selection} needs a training set of its own; with task.rows=val-split use task.selection=last"
            )

    def protocol(self) -> str:
        """The protocol id under which the selected checkpoint is reported."""
        name = self.dataset if self.rows == "official" else self.dataset.split("/")[-1]
        return f"{name}@{self.selection if self.rows == 'official' else self.rows}{rows_suffix(self.limit)}"


@dataclass
class ChoiceConfig:
    """Multiple choice scored by the log-likelihood of each continuation (commonsense, as lm-eval scores it)."""

    name: str
    kind: str
    dataset: str
    metric: str
    """`accuracy` (summed log-likelihood) or `accuracy_norm` (divided by the choice's characters)."""
    split: str
    limit: int | None
    version: int

    def __post_init__(self) -> None:
        choice("task.metric", self.metric, ("accuracy", "accuracy_norm"))
        _limit(self.limit)

    def protocol(self) -> str:
        """The protocol id: `piqa@loglikelihood[:300]`."""
        return f"{self.dataset}{split_suffix(self.dataset, self.split)}@loglikelihood{rows_suffix(self.limit)}"


@dataclass
class PerplexityConfig:
    """Token-weighted perplexity over concatenated text, in non-overlapping windows."""

    name: str
    kind: str
    dataset: str
    split: str
    context: int
    """Window length in tokens; part of the protocol id."""
    limit: int | None
    """Number of windows; None = all."""
    version: int

    def __post_init__(self) -> None:
        number("task.context", self.context, 2)
        _limit(self.limit)

    def protocol(self) -> str:
        """The protocol id: `wikitext2@ppl-1024[:24]`."""
        return f"{self.dataset}{split_suffix(self.dataset, self.split)}@ppl-{self.context}{rows_suffix(self.limit)}"


TaskConfig = ClassificationConfig | ChoiceConfig | PerplexityConfig
KINDS: dict[str, type] = {"classification": ClassificationConfig, "choice": ChoiceConfig, "perplexity": PerplexityConfig}
