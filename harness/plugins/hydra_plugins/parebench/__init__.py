"""What Hydra lets only plugins do: the sweeper `grid` plans a sweep, the launcher `pool` runs its cells on this machine.

Hydra imports this file at every start, so what it needs of the harness is imported when it is used.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class GridConf(BasicSweeperConf):
    """Configuration of the sweeper."""

    _target_: str = "hydra_plugins.parebench.Grid"
    grids: list[dict[str, str]] = field(default_factory=list)


@dataclass
class PoolConf:
    """Configuration of the launcher."""

    _target_: str = "hydra_plugins.parebench.Pool"
    workers: int = 1


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="parebench")
ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConf, provider="parebench")


class Grid(BasicSweeper):
    """A union of products: every grid on top of `params`, typed overrides above both. Ends the process with the sweep's exit code."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None, grids: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(max_batch_size, params)
        self.grids = list(grids) or [{}]

    def sweep(self, arguments: list[str]) -> Any:
        """Plan all cells, launch those that are to run, print the summary.

        Raises `harness.plan.PlanError` before the first cell starts, and `SystemExit` with 0 if all cells are done or skipped.
        """
        from harness import plan, summary

        cells = plan.check_all(self.products(arguments), self._compose)
        todo = [list(cell.overrides) for cell in cells if cell.state == plan.RUN]
        summary.show_plan(cells)
        plan.join(cells)
        if todo:
            self._save()
            self.launcher.launch(todo, initial_job_idx=0)
        raise SystemExit(summary.show_sweep(cells))

    def products(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every cell, grid by grid."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        typed = parser.parse_overrides(list(arguments))
        given = {override.get_key_element() for override in typed}
        cells: list[list[str]] = []
        for grid in self.grids:
            values = {key: value for key, value in {**self.params, **grid}.items() if key not in given}
            own = parser.parse_overrides([f"{key}={value}" for key, value in values.items()])
            cells += self.split_arguments(own + typed, None)[0]
        return cells

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.hydra_context.config_loader.load_sweep_config(self.config, overrides)

    def _save(self) -> None:
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / f"{self.config.run.sweep or 'adhoc'}.yaml")


class Pool(Launcher):
    """Threads of a torch-free dispatcher, `workers` cells at a time; each cell has its own process and its share of the cores."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`; `UserError` for less than one worker."""
        from methods.spec import number

        number("hydra.launcher.workers", self.workers, 1)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the cells; what each left in the store says how it ended."""
        from harness import dispatch, summary

        setup_globals()
        jobs = [self._job(list(overrides), max(1, dispatch.cores() // self.workers)) for overrides in job_overrides]
        progress = summary.Progress(len(jobs))
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                returns = list(threads.map(self._run, job_overrides, jobs, [progress] * len(jobs)))
            except KeyboardInterrupt:
                threads.shutdown(wait=False, cancel_futures=True)
                dispatch.stop_all()
                raise
        return returns

    def _run(self, overrides: Sequence[str], job: DictConfig, progress: Any) -> JobReturn:
        from harness.plan import changed
        from harness.store import Store

        outcome = self.task_function(job)
        if outcome is not None:
            progress.line(outcome, Store(job.run.store), changed(overrides))
        return JobReturn(overrides=list(overrides), cfg=job, status=JobStatus.COMPLETED, _return_value=outcome)

    def _job(self, overrides: list[str], threads: int) -> DictConfig:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            del cfg["hydra"]
        if cfg.run.threads is None:
            cfg.run.threads = threads
        return cfg
