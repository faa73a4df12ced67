"""The typed configuration of tasks. Torch-free, so that configuration stays fast."""

from dataclasses import dataclass, field
from importlib.metadata import version

from methods.spec import UserError, choice, number
from tasks import verifiers
from tasks.datasets import DATASETS, DatasetSpec, named
from tasks.lmeval_own import OWN
from tasks.prompts import TEMPLATES
from tasks.suites import SUITES
from tasks.wordings import WORDINGS, wording

SELECTIONS = ("last", "heldout", "dev_best", "halfdev")
DRAWS = 5
"""Fixed draws of a few-shot training set."""
USUAL_LENGTH = 128
"""Tokens of an input that a protocol id does not name; another cut is part of the id."""


def entry(dataset: str) -> DatasetSpec:
    """What is known of a dataset."""
    return DATASETS[named(dataset)]


def rows_suffix(limit: int | None) -> str:
    """The part of a protocol id that names a prefix of the rows: `[:300]`, or nothing for all rows."""
    return "" if limit is None else f"[:{limit}]"


def split_suffix(dataset: str, split: str) -> str:
    """The part of a protocol id that names a split other than the one that papers report (test where there is one): `-train`."""
    splits = entry(dataset).splits
    return "" if split == ("test" if "test" in splits else "validation") else f"-{split}"


def length_suffix(length: int) -> str:
    """The part of a protocol id that names where inputs are cut: `-512`, nothing for the usual 128 tokens."""
    return "" if length == USUAL_LENGTH else f"-{length}"


def dev_splits(dataset: str) -> tuple[str, ...]:
    """The splits called `validation...`; the first one is what tables report, MNLI has a second one of other genres."""
    return tuple(split for split in entry(dataset).splits if split.startswith("validation"))


def _tuned(train: str | None) -> str:
    """The part of a protocol id that says that the model was trained on a split of the same set."""
    return "" if train is None else "-tuned" if train == "train" else f"-tuned-{train}"


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
    """Which checkpoint is reported: `last`, or the best one on rows taken from train (`heldout`), on the reported rows themselves
    (`dev_best`, as most papers do), or on one half of dev, where the other half is reported (`halfdev`)."""
    max_length: int
    limit: int | None
    """Evaluate the first rows only; None = all."""
    version: int
    """Bumped when the protocol's numbers change."""
    init: str | None = field(default=None, metadata={"added": None})
    """Task whose finished cell, of the same method, gives the backbone (papers: `glue/mnli` for RTE, MRPC and STS-B); the head is new."""
    train_rows: int | None = field(default=None, metadata={"added": None})
    """Train on the first rows only; None = all."""

    def __post_init__(self) -> None:
        if self.train_rows is not None:
            number("task.train_rows", self.train_rows, 1)
        choice("task.rows", self.rows, ("official", "val-split"))
        if self.init == self.name:
            raise UserError(f"task.init={self.init} is the task itself; name another classification task, or task.init=null")
        choice("task.selection", self.selection, SELECTIONS)
        number("task.max_length", self.max_length, 8)
        _limit(self.limit)
        if self.rows == "val-split" and self.selection != "last":
            raise UserError(
                f"task.selection={self.selection} needs a training set of its own; with task.rows=val-split use task.selection=last"
            )

    def protocol(self) -> str:
        """The protocol id under which the selected checkpoint is reported."""
        return self.reported()

    def reported(self, part: str = "") -> str:
        """The protocol id of the dev rows, or of a second dev set that `part` names: `glue/mnli-mismatched@heldout-512[:300]`."""
        name = self.dataset if self.rows == "official" else self.dataset.split("/")[-1]
        rule = self.selection if self.rows == "official" else self.rows
        start = "" if self.init is None else f"-from-{self.init.split('/')[-1]}"
        start += "" if self.train_rows is None else f"-first{self.train_rows}"
        return f"{name}{part}@{rule}{start}{length_suffix(self.max_length)}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        dev = dev_splits(self.dataset)
        return {split: (self.dataset, split) for split in (dev[:1] if self.rows == "val-split" else ("train", *dev))}


SAMPLINGS = ("proportional", "equal")


@dataclass
class MixtureConfig:
    """Several classification tasks at once, each row with the id of its task: for routing and merging."""

    name: str
    """For instance `mixture/glue3`."""
    kind: str
    parts: list[str]
    """Datasets with classes; the order gives the task ids. Each is reported with its first metric (`tasks/classification.py`)."""
    sampling: str
    """Rows of an epoch: `proportional` = every training row once; `equal` = as many of each task as the largest has, the smaller
    ones repeated from their beginning."""
    selection: str
    """As for classification; the selection metric is the unweighted mean over the tasks."""
    max_length: int
    limit: int | None
    """Evaluate the first rows of each task only; None = all."""
    version: int

    def __post_init__(self) -> None:
        classes = [name for name, found in DATASETS.items() if found.columns.get("label") == "int"]
        for part in self.parts:
            if entry(part).columns.get("label") != "int":
                raise UserError(f"task.parts={part} has no classes to number beside those of other tasks; allowed: {', '.join(classes)}")
        if len(self.parts) < 2 or len(set(self.shorts())) < len(self.parts):
            raise UserError(f"task.parts={self.parts} is no mixture; give two tasks or more, none twice")
        choice("task.sampling", self.sampling, SAMPLINGS)
        choice("task.selection", self.selection, SELECTIONS)
        number("task.max_length", self.max_length, 8)
        _limit(self.limit)

    @property
    def dataset(self) -> None:
        """There is no single one."""
        return

    def shorts(self) -> list[str]:
        """What the parts are called within the mixture."""
        return [part.rpartition("/")[2] for part in self.parts]

    def protocol(self) -> str:
        """The id of the training form; every part has an id of its own."""
        return f"{self.name}@{self._form()}"

    def reported(self, short: str) -> str:
        """The protocol id of a part: `mixture/glue3/sst2@heldout-of-sst2+mrpc+rte-equal-512[:300]`."""
        return f"{self.name}/{short}@{self._form()}{rows_suffix(self.limit)}"

    def _form(self) -> str:
        sampling = "" if self.sampling == "proportional" else f"-{self.sampling}"
        return f"{self.selection}-of-{'+'.join(self.shorts())}{sampling}{length_suffix(self.max_length)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        places = [(part, split) for part in self.parts for split in ("train", dev_splits(part)[0])]
        return {f"{part}:{split}": (part, split) for part, split in places}


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
    train: str | None = field(default=None, metadata={"added": None})
    """Split to train on before the measurement; None = the model is measured only."""

    def __post_init__(self) -> None:
        choice("task.metric", self.metric, ("accuracy", "accuracy_norm"))
        _limit(self.limit)

    def protocol(self) -> str:
        """The protocol id: `piqa@loglikelihood[:300]`."""
        return f"{self.dataset}{split_suffix(self.dataset, self.split)}@loglikelihood{_tuned(self.train)}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        return {split: (self.dataset, split) for split in (self.split, self.train) if split}


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
    train: str | None = field(default=None, metadata={"added": None})
    """Split to train on before the measurement; None = the model is measured only."""
    documents: int | None = field(default=None, metadata={"added": None})
    """Concatenate the first documents only; None = all."""

    def __post_init__(self) -> None:
        number("task.context", self.context, 2)
        if self.documents is not None:
            number("task.documents", self.documents, 1)
        _limit(self.limit)

    def protocol(self) -> str:
        """The protocol id: `wikitext2@ppl-1024[:24]`, with a prefix of the documents `c4[:1100]@ppl-2048[:256]`."""
        text = f"{self.dataset}{split_suffix(self.dataset, self.split)}{rows_suffix(self.documents)}"
        return f"{text}@ppl-{self.context}{_tuned(self.train)}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        return {split: (self.dataset, split) for split in (self.split, self.train) if split}


@dataclass
class SolutionConfig:
    """Worked solutions: trained on as text, measured by the number that a greedy continuation ends in."""

    name: str
    kind: str
    dataset: str
    """With the columns `question` and `answer`, whose last line is `#### <number>`."""
    split: str
    mask_prompt: bool
    """The loss covers the solution alone; else the question as well."""
    new_tokens: int
    """Longest completion in tokens."""
    limit: int | None
    version: int

    def __post_init__(self) -> None:
        if entry(self.dataset).columns.keys() != {"question", "answer"}:
            raise UserError(f"task.dataset={self.dataset} has no worked solutions; give toy/arithmetic-<difficulty> or gsm8k")
        number("task.new_tokens", self.new_tokens, 1)
        _limit(self.limit)

    def protocol(self) -> str:
        """The protocol id: `toy/arithmetic-1@exact-masked-greedy64`."""
        loss = "masked" if self.mask_prompt else "whole"
        split = split_suffix(self.dataset, self.split)
        return f"{self.dataset}{split}@exact-{loss}-greedy{self.new_tokens}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        return {split: (self.dataset, split) for split in ("train", self.split)}


@dataclass
class ResampleConfig:
    """Questions with worked solutions, sampled many times until a verifier accepts an answer (`tasks/resampling.py`)."""

    name: str
    kind: str
    dataset: str
    """With the columns `question` and `answer`, whose last line is `#### <number>`."""
    split: str
    attempts: int
    """K: samples that the verifier sees at most."""
    samples: int
    """Candidates drawn per question, over all orders of which the numbers are means."""
    temperature: float
    verifiers: list[str]
    """The first one decides the reported accuracy and is part of the id, the others are recorded beside it: `exact` (then the accuracy
    is pass@K), `format`, `arithmetic`, `agreement:<votes>:<share>`, `logprob:<nats>`, `flipped:<completeness>:<soundness>` (see
    `tasks/verifiers.py`)."""
    prompt: str
    """`line` (the question and a line break, as `kind: solution` trains) or a key of `tasks/prompts.py`."""
    shots: int
    """Solved training questions before each question: the first ones of the training split."""
    answer: str
    """How a number is found: `marked` (after `####`, else after `The answer is: `) or `last` (the last number)."""
    new_tokens: int
    sampling_seed: int
    """Of the samples, the same for all models and runs: they are compared on the same draws."""
    redundancy: bool
    """Record how much of the correct solutions is redundant (`tasks/redundancy.py`); windows are embedded by the model itself. Like further
    verifiers it is no part of the id: a cell that was measured without gets it with run.force=true."""
    limit: int | None
    version: int

    def __post_init__(self) -> None:
        if entry(self.dataset).columns.keys() != {"question", "answer"}:
            raise UserError(f"task.dataset={self.dataset} has no worked solutions; give toy/arithmetic-<difficulty> or gsm8k")
        for key, low in (("attempts", 1), ("samples", 1), ("shots", 0), ("new_tokens", 1), ("sampling_seed", 0)):
            number(f"task.{key}", getattr(self, key), low)
        if self.attempts > self.samples:
            raise UserError(f"task.attempts={self.attempts} is more than task.samples={self.samples}; draw at least as many")
        number("task.temperature", self.temperature, 0, open_low=True)
        choice("task.prompt", self.prompt, ("line", *TEMPLATES))
        choice("task.answer", self.answer, ("marked", "last"))
        if not self.verifiers or len(set(self.verifiers)) < len(self.verifiers):
            raise UserError(f"task.verifiers={self.verifiers} is not allowed; give at least one, and none twice: exact, format, arithmetic")
        for name in self.verifiers:
            verifiers.parse(name)
        _limit(self.limit)

    def protocol(self) -> str:
        """`gsm8k@resample-10of50-exact-t0.8-256-line-marked-5shot[:100]`."""
        shots = f"-{self.shots}shot" if self.shots else ""
        seed = f"-seed{self.sampling_seed}" if self.sampling_seed else ""
        draw = f"{self.attempts}of{self.samples}-{self.verifiers[0]}-t{self.temperature:g}-{self.new_tokens}"
        place = f"{self.dataset}{split_suffix(self.dataset, self.split)}"
        return f"{place}@resample-{draw}-{self.prompt}-{self.answer}{shots}{seed}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        shots = {"train": (self.dataset, "train")} if self.shots else {}
        return {self.split: (self.dataset, self.split)} | shots


@dataclass
class VerbalConfig:
    """Classification by the words that a language model puts in the place of the answer; no head is added."""

    name: str
    kind: str
    dataset: str
    metric: str
    form: str
    """`cloze` = label words at the mask of a masked model; `prompt` = after a prompt, of a causal one; `text` = input and target as
    text, of a causal one (see `tasks/wordings.py`)."""
    shots: int | None
    """Training rows per class; None = all, 0 = the model is evaluated as it is."""
    draw: int
    """Which fixed draw of the shots: 0 to 4."""
    selection: str
    """As for classification; under `heldout` a few-shot task takes as many rows again, as LM-BFF does."""
    max_length: int
    limit: int | None
    version: int

    def __post_init__(self) -> None:
        choice("task.form", self.form, WORDINGS)
        wording(self.form, self.dataset)
        choice("task.selection", self.selection, SELECTIONS)
        number("task.max_length", self.max_length, 8)
        number("task.draw", self.draw, 0, DRAWS - 1)
        if self.shots is not None:
            number("task.shots", self.shots, 0)
        if self.shots == 0 and self.selection != "last":
            raise UserError(f"task.shots=0 trains nothing to select from; give task.selection=last instead of {self.selection}")
        _limit(self.limit)

    @property
    def trains(self) -> bool:
        """Has training rows."""
        return self.shots != 0

    @property
    def split(self) -> str:
        """The split that is reported."""
        return dev_splits(self.dataset)[0]

    def protocol(self) -> str:
        """`glue/rte@prompt-k16-d0-heldout`, `glue/rte@text-last-512[:100]`, and `glue/rte@prompt-k0` without training."""
        shots = {None: "", 0: "-k0"}.get(self.shots, f"-k{self.shots}-d{self.draw}")
        rule = f"-{self.selection}" if self.trains else ""
        return f"{self.dataset}@{self.form}{shots}{rule}{length_suffix(self.max_length)}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        dev = dev_splits(self.dataset)[0]
        return {split: (self.dataset, split) for split in (("train", dev) if self.trains else (dev,))}


INSTRUCTION_SETS = ("commonsense_170k", "commonsense_147k", "math_10k", "math_3k", "metamathqa", "alpaca", "gsm8k")
FORMS = ("generate", "loglikelihood-answer")


@dataclass
class InstructConfig:
    """Instruction tuning of a language model, then test sets answered by generation or by the likelihood of their answers."""

    name: str
    kind: str
    dataset: str
    """What is trained on, one of `INSTRUCTION_SETS`."""
    evaluations: list[str]
    """Keys of `tasks/suites.py`, each a result of its own."""
    forms: list[str]
    """`generate`, and `loglikelihood-answer` for test sets with a list of legal answers."""
    template: str
    """Key of `tasks/prompts.py`."""
    mask_prompt: bool
    """The loss covers the response alone; else the prompt as well, which is the default of LLM-Adapters."""
    max_length: int
    """Tokens of a training example; what is longer loses its end."""
    train_rows: int | None
    """Train on the first rows only; None = all."""
    selection: str
    """`last`, or `heldout`: the state with the lowest loss on 120 rows taken out of training."""
    beams: int | None
    """Beams of the search, 1 = greedy; None = as each test set's paper does."""
    new_tokens: int | None
    """Longest completion in tokens; None = as each test set's paper does."""
    limit: int | None
    version: int

    def __post_init__(self) -> None:
        choice("task.dataset", self.dataset, INSTRUCTION_SETS)
        choice("task.template", self.template, TEMPLATES)
        choice("task.selection", self.selection, ("last", "heldout"))
        number("task.max_length", self.max_length, 8)
        for key in ("train_rows", "beams", "new_tokens"):
            if (value := getattr(self, key)) is not None:
                number(f"task.{key}", value, 1)
        _limit(self.limit)
        self._check_evaluations()

    def _check_evaluations(self) -> None:
        for key, values, allowed in (("evaluations", self.evaluations, SUITES), ("forms", self.forms, FORMS)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"task.{key}={values} is not allowed; give at least one of, and none twice: {', '.join(allowed)}")
            for value in values:
                choice(f"task.{key}", value, allowed)
        without = [name for name in self.evaluations if not SUITES[name].choices]
        if without and "loglikelihood-answer" in self.forms:
            raise UserError(f"{without[0]} has no list of legal answers; take it out of task.evaluations, or give task.forms=[generate]")

    def protocol(self) -> str:
        """The id of the training form; what is measured has ids of its own."""
        return f"{self.dataset}@{self._training()}"

    def reported(self, evaluation: str, form: str) -> str:
        """The protocol id of a test set: `commonsense_170k/boolq@generate-whole-256-beam4-32[:200]`."""
        suite = SUITES[evaluation]
        decoding = f"-beam{self.beams or suite.beams}-{self.new_tokens or suite.new_tokens}" if form == "generate" else ""
        return f"{self.dataset}/{evaluation}@{form}-{self._training()}{decoding}{rows_suffix(self.limit)}"

    def _training(self) -> str:
        """Loss mask, cut, and whatever else departs from the default."""
        parts = ["masked" if self.mask_prompt else "whole", str(self.max_length)]
        parts += [self.template] if self.template != "clean" else []
        parts += [f"first{self.train_rows}"] if self.train_rows is not None else []
        return "-".join(parts + ([self.selection] if self.selection != "last" else []))

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads."""
        return {"train": (self.dataset, "train")} | {name: (SUITES[name].dataset, "test") for name in self.evaluations}


@dataclass
class LmEvalConfig:
    """A task of lm-eval, one of our own definitions or one that it ships, evaluated by lm-eval itself."""

    name: str
    kind: str
    task: str
    """lm-eval's name: a key of `tasks/lmeval_own.py`, or with `builtin` any task, tag or group of lm-eval."""
    builtin: bool
    """The definition that lm-eval ships; its index takes seconds to read."""
    dataset: str | None
    """Key of `tasks/datasets.py`, whose rows take the place of those on the hub; None = what the definition names, from the hub."""
    split: str | None
    """The evaluated split of `dataset`."""
    shots: int | None
    """Solved examples before each question, drawn from train; None = as the definition says."""
    limit: int | None
    """Evaluate the first documents only; None = all."""
    version: int

    def __post_init__(self) -> None:
        if not self.builtin and self.task not in OWN:
            raise UserError(f"task.task={self.task} is none of ours ({', '.join(OWN)}); type task.builtin=true for one that lm-eval ships")
        if self.dataset is None and not self.builtin:
            raise UserError("task.dataset=null needs task.builtin=true; our own definitions read task.dataset=<dataset>")
        if self.dataset is not None and (self.split is None or self.shots is None):
            raise UserError("task.dataset needs task.split=<split> and task.shots=<number>: they decide which rows are read")
        if self.shots is not None:
            number("task.shots", self.shots, 0)
        _limit(self.limit)

    def protocol(self) -> str:
        """The id of the task as a whole; what is measured has ids of its own."""
        name = f"{self._engine()}/{self.task}" if self.builtin else f"{self.task}@lm-eval"
        return f"{name}{rows_suffix(self.limit)}"

    def reported(self, task: str, metric_filter: str, shots: int) -> str:
        """The protocol id of one filter of one lm-eval task: `gsm8k@strict[:200]`, `lm-eval-0.4.13/mmlu_anatomy@5shot`."""
        own = None if self.builtin else OWN[task]
        form = f"{shots}shot" if own is None else own.forms.get(metric_filter, metric_filter)
        form += f"-{metric_filter}" if own is None and metric_filter != "none" else ""
        form += f"-{shots}shot" if own is not None and shots != own.shots else ""
        place = f"{self._engine()}/{task}" if own is None else task + split_suffix(self.dataset or "", self.split or "")
        return f"{place}@{form}{rows_suffix(self.limit)}"

    def reads(self) -> dict[str, tuple[str, str]]:
        """Dataset and split of all that the task reads from our sources."""
        if self.dataset is None or self.split is None:
            return {}
        shots = {"train": (self.dataset, "train")} if self.shots else {}
        return {self.split: (self.dataset, self.split)} | shots

    def definitions(self) -> dict[str, str]:
        """What decides the numbers of a task that lm-eval defines: its version."""
        return {"lm-eval": version("lm_eval")} if self.builtin else {}

    @staticmethod
    def _engine() -> str:
        return f"lm-eval-{version('lm_eval')}"


HeadedConfig = ClassificationConfig | MixtureConfig
"""Tasks whose model gets a fresh head."""
TaskConfig = HeadedConfig | ChoiceConfig | PerplexityConfig | InstructConfig | VerbalConfig | SolutionConfig | LmEvalConfig | ResampleConfig
KINDS: dict[str, type] = {
    "classification": ClassificationConfig,
    "mixture": MixtureConfig,
    "choice": ChoiceConfig,
    "perplexity": PerplexityConfig,
    "instruct": InstructConfig,
    "verbal": VerbalConfig,
    "solution": SolutionConfig,
    "lmeval": LmEvalConfig,
    "resample": ResampleConfig,
}


def trains(task: TaskConfig) -> bool:
    """Whether the task has rows to train on."""
    if isinstance(task, VerbalConfig):
        return task.trains
    return isinstance(task, HeadedConfig | InstructConfig | SolutionConfig) or getattr(task, "train", None) is not None
