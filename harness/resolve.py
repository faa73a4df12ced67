"""From a composed configuration to the typed cell and run: everything a user can get wrong is refused here, without torch."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness import chains, expressions, recipes, slots
from harness.config import (
    CALIBRATION_LENGTH,
    BudgetConfig,
    CalibrationConfig,
    Cell,
    ComputeConfig,
    CorpusConfig,
    ModelConfig,
    Recipe,
    RunConfig,
    Top,
    TrackerConfig,
)
from harness.nearmiss import unknown
from harness.registry import CHAIN, MethodSpec, load_spec
from harness.typed import build, shown
from methods.spec import Traits, UserError
from tasks.calibration import overlap
from tasks.datasets import DATASETS, named
from tasks.spec import KINDS, TaskConfig, trains

BLOCKS = ("method", "model", "task", "budget", "recipe", "run", "compute", "tracker")
NEEDS = "dependencies"
"""Key under which `harness.plan` puts the configurations of the cells that a cell needs; nobody types it."""
PROTOCOL_TASKS = "protocol_tasks"
"""Key under which `harness.plan` puts the task configurations of `protocols`; nobody types it."""
MATCHED = "matched"
"""Key under which `harness.matching` notes which keys of the method it solved for, and to what budget; nobody types it."""
UNTYPED = (NEEDS, PROTOCOL_TASKS, MATCHED)
TOP = (*BLOCKS, "calibration", "corpus", "seed", "precision", "data_dir", "protocols", "forgetting", "table", *UNTYPED)
expressions.register()
UNTRAINED = {"lr": 0.0}
"""The learning rate of a cell without optimizer steps; its recipe is no part of its identity."""


@dataclass
class Resolved:
    """A configuration, typed and checked."""

    cell: Cell
    run: RunConfig
    data_dir: Path | None
    """A local data folder, or None."""
    tracker: TrackerConfig
    needs: dict[str, "Resolved"] = field(default_factory=dict)
    """The cells that the method needs, by the name that it gave them."""
    compute: ComputeConfig = field(default_factory=lambda: ComputeConfig("single", None))
    protocols: dict[str, TaskConfig] = field(default_factory=dict)
    """More tasks that the model is measured on, by name."""
    asked: tuple[str, ...] = ()
    """The names under `protocols` and `forgetting` as they were typed."""
    forgetting: tuple[str, ...] = ()
    """Those of `protocols` that are measured before training too."""

    @property
    def processes(self) -> int:
        """How many processes train this cell."""
        return processes(self.compute, self.run)

    @property
    def spec(self) -> MethodSpec:
        """The method's torch-free half."""
        return load_spec(self.cell.method)

    @cached_property
    def traits(self) -> Traits:
        """The method's traits under this configuration."""
        return self.spec.adjusted(self.cell.method_config)


def resolve(cfg: DictConfig) -> Resolved:
    """Check a composed configuration and give its typed halves.

    Raises `UserError` with one sentence on the first thing that is wrong.
    """
    values = _plain(cfg)
    lists = {key: values.get(key) or [] for key in ("protocols", "forgetting")}
    top = build(Top, {key: values.get(key) for key in ("seed", "precision", "data_dir")} | lists, "")
    run = build(RunConfig, values["run"], "run")
    compute = build(ComputeConfig, values["compute"], "compute")
    tracker = build(TrackerConfig, values["tracker"], "tracker")
    spec, config, matchers = _method(values["method"])
    model = build(ModelConfig, values["model"], "model")
    task = _task(values["task"])
    budget = build(BudgetConfig, values["budget"], "budget")
    names = {"task": task.name, "model": model.name, "budget": budget.name}
    if spec.slug == CHAIN:
        config, origins = chains.typed(config, lambda *args: _recipe(args[0], args[1], names, {**values["recipe"], **args[2]}, args[3]))
        recipe = chains.counted(config).recipe
    else:
        recipe, origins = _recipe(spec.adjusted(config), matchers, names, values["recipe"], spec.slug)
    _check_run(run, recipe)
    _check_batch(recipe.batch, run.micro_batch, processes(compute, run))
    calibration = _calibration(values.get("calibration") or {}, spec.adjusted(config), model, task)
    corpus = _corpus(values.get("corpus") or {}, spec.adjusted(config), model, task)
    origins |= {f"method.{key}": str(text) for key, text in (values.get(MATCHED) or {}).items()}
    cell = Cell(spec.slug, config, model, task, budget, recipe, top.seed, top.precision, origins, calibration, corpus)
    needs = {str(name): resolve(OmegaConf.create(need)) for name, need in (values.get(NEEDS) or {}).items()}
    forgetting = tuple(dict.fromkeys(top.forgetting))
    protocols = protocol_tasks(values.get(PROTOCOL_TASKS) or {}, task, forgetting)
    asked = tuple(dict.fromkeys([*top.protocols, *forgetting]))
    return Resolved(cell, run, _folder(top.data_dir), tracker, needs, compute, protocols, asked, forgetting)


def processes(compute: ComputeConfig, run: RunConfig) -> int:
    """How many processes train a cell, one per accelerator where there are any; `UserError` where that many cannot be had."""
    kind, given = compute.kind, compute.processes
    if kind == "single":
        return 1
    if ":" in run.device:
        raise UserError(f"run.device={run.device} is one accelerator and compute={kind} uses several; give run.device=cuda or cpu")
    there = 0 if run.device == "cpu" else len(slots.visible())
    if there and run.gpus and given and run.gpus != given:
        raise UserError(f"run.gpus={run.gpus} and compute.processes={given} contradict each other; give one of them")
    wanted = given or (there and run.gpus) or there
    if not wanted:
        raise UserError(f"compute={kind} finds no accelerators for run.device={run.device}; give compute.processes=<number> for a CPU")
    if there and wanted > there:
        raise UserError(f"compute.processes={wanted} is more than the {there} accelerators here; give at most {there}, or run.device=cpu")
    return wanted


def protocol_tasks(blocks: Mapping[str, Any], own: TaskConfig, forgetting: Collection[str] = ()) -> dict[str, TaskConfig]:
    """The typed tasks of `protocols` (and `forgetting`); `UserError` where one is the cell's own or two are the same protocol."""
    tasks = {str(name): _task(block) for name, block in blocks.items()}
    known = {own.protocol(): "the cell's own task, which is measured anyway"}
    for name, task in tasks.items():
        if task.protocol() in known:
            key = "forgetting" if name in forgetting else "protocols"
            raise UserError(f"{key}={name} is {known[task.protocol()]}; leave it out")
        known[task.protocol()] = f"the same protocol as {name}"
    return tasks


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy without Hydra's own block."""
    job = cfg.copy()
    with open_dict(job):
        job.pop("hydra", None)
    return job


def _plain(cfg: DictConfig) -> dict[str, Any]:
    for key in cfg:
        if key == "sweeps":
            raise UserError("sweeps=... was read as plain values; begin that sweep file with the line '# @package _global_'")
        if key not in TOP and key != "hydra":
            raise UserError(unknown("the top-level key", str(key), set(TOP) - set(UNTYPED), sign=" "))
    for key in BLOCKS:
        if not OmegaConf.is_dict(cfg.get(key)):
            write = f"{key}.<key>=<value>" if key in ("recipe", "run") else f"{key}=<name> with a name that parebench --help lists"
            raise UserError(f"{key}={shown(cfg.get(key))} is not a block of keys; type {write}")
    try:
        return {str(key): value for key, value in OmegaConf.to_container(without_hydra(cfg), resolve=True).items()}
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'a value'} refers to something that is not there: {str(error).splitlines()[0]}") from None


def _method(values: Mapping[str, Any]) -> tuple[MethodSpec, Any, list[recipes.Matcher]]:
    rest = dict(values)
    slug, entries = rest.pop("name", None), rest.pop("recipes", None)
    spec = load_spec(str(slug))
    matchers = recipes.base() + recipes.parse(entries or [], f"conf/method/{slug}.yaml")
    return spec, build(spec.config, rest, "method"), matchers


def _task(values: Mapping[str, Any]) -> Any:
    kind = values.get("kind")
    if kind not in KINDS:
        raise UserError(unknown("task.kind", str(kind), KINDS))
    task = build(KINDS[kind], values, "task")
    if task.dataset is not None and task.dataset.partition(":")[0] not in DATASETS:
        raise UserError(unknown("task.dataset", task.dataset, DATASETS))
    if task.dataset is not None:
        named(task.dataset)
    return task


def _calibration(values: Mapping[str, Any], traits: Traits, model: ModelConfig, task: Any) -> CalibrationConfig | None:
    config = build(CalibrationConfig, values, "calibration")
    if not traits.calibration:
        return None
    evaluated = (task.dataset, getattr(task, "split", None))
    if overlap(config.source, [evaluated]):
        raise UserError(f"calibration.source={config.source} is the text that task {task.name} is measured on; give another one")
    return replace(config, length=config.length or min(CALIBRATION_LENGTH, model.max_length))


def _corpus(values: Mapping[str, Any], traits: Traits, model: ModelConfig, task: TaskConfig) -> CorpusConfig | None:
    """None where nothing trains, or nothing is given; refused beside a task's own training rows."""
    config = build(CorpusConfig, values, "corpus")
    if config.source is None or not traits.trains:
        return None
    if trains(task):
        raise UserError(
            f"corpus.source={config.source} is for tasks without training rows and {task.name} has some; give corpus.source=null"
        )
    if overlap(config.source, [(task.dataset, getattr(task, "split", None))]):
        raise UserError(f"corpus.source={config.source} is the text that task {task.name} is measured on; give another one")
    return replace(config, length=config.length or min(CALIBRATION_LENGTH, model.max_length))


def _recipe(
    traits: Traits, matchers: list[recipes.Matcher], names: Mapping[str, str], overrides: Mapping[str, Any], slug: str
) -> tuple[Recipe, dict[str, str]]:
    for key in overrides:
        if key not in recipes.VALUES:
            raise UserError(unknown("recipe.", str(key), recipes.VALUES, sign=""))
    values, origins = recipes.resolve(matchers, names, overrides)
    if not steps(traits):
        values = UNTRAINED | values
    elif "lr" not in values:
        where = f"task {names['task']}, model {names['model']}, budget {names['budget']}"
        raise UserError(f"method {slug} has no learning rate for {where}; give recipe.lr=<number> or a recipe in conf/method/{slug}.yaml")
    return build(Recipe, values, "recipe"), origins if steps(traits) else {}


def steps(traits: Traits) -> bool:
    """Whether the recipe matters: a method that fits parameters by optimizer steps."""
    return traits.trains and traits.gradients


def _check_run(run: RunConfig, recipe: Recipe) -> None:
    if problem := _unusable(run.store):
        raise UserError(f"run.store={run.store} {problem}; give the path of a folder that is yours, which is made where there is none")


def _check_batch(batch: int, micro: int | None, count: int) -> None:
    if micro is not None and batch % micro:
        raise UserError(f"run.micro_batch={micro} does not divide recipe.batch={batch}; allowed: a divisor of it")
    if batch % ((micro or 1) * count):
        product = f"compute.processes={count}" if micro is None else f"compute.processes={count} times run.micro_batch={micro}"
        raise UserError(f"{product} does not divide recipe.batch={batch}, the global batch; allowed: a divisor of it")


def _unusable(store: str) -> str | None:
    """Why no cell could be written under `store`: a file on the way, or no right to write."""
    try:
        there = next(path for path in (Path(store), *Path(store).absolute().parents) if path.exists())
        if not there.is_dir():
            return "is a file" if there == Path(store) else f"lies under the file {there}"
        return None if os.access(there, os.W_OK | os.X_OK) else f"cannot be written ({there})"
    except OSError as error:
        return f"cannot be used ({error.strerror})"


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _folder(data_dir: str | None) -> Path | None:
    if data_dir is None:
        return None
    path = Path(data_dir).expanduser()
    if not data_dir or not _is_dir(path):
        raise UserError(f"data_dir={data_dir} is no folder; give the path of a folder of datasets in hub columns, or data_dir=null")
    return path
