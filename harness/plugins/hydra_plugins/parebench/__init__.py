"""What Hydra lets only plugins do: the sweeper `grid` plans a sweep, the launcher `pool` runs its cells on this machine.

Hydra imports this file at every start, so what it needs of the harness is imported when it is used.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.parebench._planned import PlannedLauncher


@dataclass
class GridConf(BasicSweeperConf):
    """Configuration of the sweeper."""

    _target_: str = "hydra_plugins.parebench.Grid"
    grids: list[dict[str, str]] = field(default_factory=list)
    dry: bool = False
    """Plan and show, start nothing (`parebench-sweep plan`)."""


@dataclass
class PoolConf:
    """Configuration of the launcher."""

    _target_: str = "hydra_plugins.parebench.Pool"
    workers: int = 1


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="parebench")
ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConf, provider="parebench")


class Grid(BasicSweeper):
    """A union of products: every grid on top of `params`, typed overrides above both. Ends the process with the sweep's exit code."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None = None, grids: Sequence[dict[str, str]] = (), dry: bool = False
    ) -> None:
        super().__init__(max_batch_size, params)
        self.grids, self.dry = list(grids) or [{}], dry

    def sweep(self, arguments: list[str]) -> Any:
        """Plan all cells, launch those that are to run, print the summary.

        Raises `harness.plan.PlanError` before the first cell starts, and `SystemExit` with 0 if all cells are done or skipped.
        """
        from harness import dispatch, mirror, plan, summary
        from harness.compose import Compositions
        from harness.store import ADHOC

        cells = plan.check_all(self.products(arguments), Compositions(self.hydra_context.config_loader, self.config))
        if self.dry:
            self._preview(cells)
        todo = [cell for cell in cells if cell.state in (plan.RUN, plan.LEASED)]
        if isinstance(self.launcher, Pool):
            dispatch.check_devices(todo)
        summary.show_plan(cells)
        if not self.config.run.only:
            plan.join(cells, sys.argv[1:])
        if todo:
            self._save()
            with mirror.started(cells[0].resolved.tracker, self.config.run.store, self.config.run.sweep or ADHOC):
                self._launch(todo)
        raise SystemExit(summary.show_sweep(cells))

    def _preview(self, cells: list[Any]) -> NoReturn:
        from harness import preview

        sys.stdout.write(preview.text(cells, self.config.hydra.launcher.get("workers", 1)))
        raise SystemExit(0)

    def _launch(self, todo: list[Any]) -> None:
        """Our own launchers take planned cells as they are; every other composes them again from their overrides."""
        if hasattr(self.launcher, "run"):
            self.launcher.run(todo)
        else:
            self.launcher.launch([list(cell.overrides) for cell in todo], initial_job_idx=0)

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

    def _save(self) -> None:
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / f"{self.config.run.sweep or 'adhoc'}.yaml")


class Pool(PlannedLauncher):
    """Threads of a torch-free dispatcher, `workers` cells at a time; each cell has its own process and its share of the cores."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`; `UserError` for less than one worker."""
        from methods.spec import number

        number("hydra.launcher.workers", self.workers, 1)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def run(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Run planned cells in order; outcomes by cell id. Ctrl-C, SIGTERM and SIGUSR2 let the running cells save first."""
        from harness import dispatch, live, schedule, summary
        from harness.stopping import stops

        threads = max(1, dispatch.cores() // self.workers)
        ready = [cell.with_threads(threads) for cell in cells]
        outcomes: dict[str, Any] = {}
        with live.view(ready, cells[0].store, summary.console) as view, stops():
            for outcome in schedule.run_all(ready, self.workers, dispatch.run, dispatch.stopped):
                view.line(outcome)
                outcomes[outcome.cell] = outcome
        return outcomes
