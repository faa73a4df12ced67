"""What the launchers of clusters share. Hydra skips files that begin with an underscore when it looks for plugins."""

import importlib.util
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.parebench._planned import PlannedLauncher


class ClusterLauncher(PlannedLauncher):
    """Hands each cell to a cluster as a `harness.job.Job`; the task function that Hydra offers stays here."""

    package: str
    """What must be importable."""
    requirement: str
    """The same in pip's words."""
    schema: type
    """Dataclass of the launcher's configuration."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`; `UserError` for a missing package or a wrong value, before a cell is composed."""
        from harness.typed import build
        from methods.spec import UserError

        self.settings = build(self.schema, self.values, "hydra.launcher")
        if importlib.util.find_spec(self.package) is None:
            raise UserError(f"this launcher needs the package {self.package}; type: pip install '{self.requirement}'")
        self.hydra_context, self.config = hydra_context, config

    def run(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Run planned cells, those that others need first; outcomes by cell id. Ctrl-C lets the running cells save."""
        from harness import live, stopping, summary
        from harness.schedule import Schedule

        schedule = Schedule(cells)
        try:
            with live.view(cells, cells[0].store, summary.console) as view:
                while ready := list(iter(schedule.ready, None)):
                    for outcome in self._handed(ready, schedule):
                        schedule.ended[outcome.cell] = outcome
                        view.line(outcome)
        except KeyboardInterrupt:
            os.write(2, stopping.NOTE)
            raise
        return schedule.ended

    def _handed(self, cells: Sequence[Any], schedule: Any) -> Iterator[Any]:
        """The outcomes of cells whose turn has come; those that a failed need hinders stay here."""
        from harness.awaited import Awaited

        jobs = []
        for cell in cells:
            if hindrance := schedule.hindrance(cell):
                hindrance.write(cell.folder)
                yield hindrance
            else:
                jobs.append(Awaited(self.job(cell)))
        if jobs:
            yield from self.outcomes(jobs)

    def job(self, cell: Any) -> Any:
        """A cell as it travels, with its CPUs as its threads."""
        from harness.job import Job

        cell = cell.with_threads(self.settings.cpus)
        return Job(cell.cell, cell.label, str(Path.cwd()), cell.container, getattr(self.settings, "requeues", 0))

    @abstractmethod
    def outcomes(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Hand over `harness.awaited.Awaited` jobs; their `harness.outcome.Outcome`s as they end."""
