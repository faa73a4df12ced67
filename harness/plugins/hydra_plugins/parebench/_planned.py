"""What all our launchers share. Hydra skips files that begin with an underscore when it looks for plugins."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher


class PlannedLauncher(Launcher):
    """A launcher that is given planned cells by the sweeper `grid`; under any other sweeper it plans them itself."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Plan and run cells for another sweeper than `grid`; what each left in the store says how it ended."""
        from harness import plan
        from harness.compose import Compositions

        setup_globals()
        cells = plan.check_all(job_overrides, Compositions(self.hydra_context.config_loader, self.config))
        outcomes = self.run(plan.in_order(cells))
        returns = [(cell, outcomes.get(cell.cell)) for cell in cells]
        return [JobReturn(overrides=cell.overrides, status=JobStatus.COMPLETED, _return_value=ended) for cell, ended in returns]

    @abstractmethod
    def run(self, cells: Sequence[Any]) -> dict[str, Any]:
        """Run planned cells, those that others need first; outcomes by cell id."""
