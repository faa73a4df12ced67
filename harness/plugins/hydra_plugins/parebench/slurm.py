"""The launcher `slurm`: one job per cell through submitit, watched with squeue.

submitit's own waiting asks SLURM's accounting (sacct) and never ends for a job that was killed where there is none; the state
that accounting reports is not the cell's either. So submission is submitit's, and the ending is read from the store.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra_plugins.parebench._cluster import ClusterLauncher

ARRAY = 1000
"""Jobs of one array; SLURM's default limit is 1001."""
HELD = "launch failed requeued held"
"""The reason of a job that SLURM could not start and will not start again by itself."""


@dataclass
class SlurmConf:
    """Configuration of the launcher."""

    workers: int
    """Cells at a time."""
    cpus: int
    gpus: int | None
    mem_gb: float
    minutes: int
    """Time limit of an attempt."""
    signal_seconds: int
    """How long before the time limit a cell is asked to save."""
    requeues: int
    """How often a cell that ran into its time limit is started again."""
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    setup: list[str]
    """Shell lines before the cell."""
    options: dict[str, Any]
    """Further options of sbatch."""
    poll_seconds: float

    def __post_init__(self) -> None:
        from methods.spec import UserError, number

        for key, low in (("workers", 1), ("cpus", 1), ("minutes", 1), ("signal_seconds", 1), ("requeues", 0)):
            number(f"hydra.launcher.{key}", getattr(self, key), low)
        number("hydra.launcher.mem_gb", self.mem_gb, 0, open_low=True)
        number("hydra.launcher.poll_seconds", self.poll_seconds, 0.1)
        if self.minutes * 60 < 2 * self.signal_seconds:  # a signal at a job's very start would kill it
            allowed = f"at most half of hydra.launcher.minutes={self.minutes}, {self.minutes * 30}"
            raise UserError(f"hydra.launcher.signal_seconds={self.signal_seconds} is not allowed; allowed: {allowed}")

    def parameters(self) -> dict[str, Any]:
        """The same in submitit's words."""
        # srun does not take over --cpus-per-task of sbatch since SLURM 22.05
        return {
            "name": "parebench", "timeout_min": self.minutes, "mem_gb": self.mem_gb, "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus, "stderr_to_stdout": True, "slurm_partition": self.partition, "slurm_account": self.account,
            "slurm_qos": self.qos, "slurm_constraint": self.constraint, "slurm_array_parallelism": self.workers,
            "slurm_signal_delay_s": self.signal_seconds, "slurm_setup": self.setup, "slurm_use_srun": True,
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"], "slurm_additional_parameters": {"requeue": True, **self.options},
        }  # fmt: skip


class Slurm(ClusterLauncher):
    """Submits cells as arrays and waits until each has ended or left the queue; Ctrl-C cancels the jobs, whose cells save first."""

    package, requirement, schema = "submitit", "submitit>=1.5.4,<2", SlurmConf

    def setup(self, **context: Any) -> None:
        """As `ClusterLauncher.setup`; also `UserError` on a machine without SLURM."""
        from methods.spec import UserError

        super().setup(**context)
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel", "scontrol") if shutil.which(name) is None]:
            raise UserError(f"hydra/launcher=slurm needs SLURM's commands and {missing[0]} is not here; use a login node, or pool")

    def outcomes(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Submit the jobs, then tell of each as it leaves the queue; `UserError` where SLURM refuses them."""
        from harness import awaited
        from methods.spec import UserError

        submitted: dict[str, Any] = {}
        try:
            self._submit(jobs, submitted)
            yield from awaited.follow(submitted, queued, self.settings.poll_seconds)
        except (KeyboardInterrupt, GeneratorExit, UserError):
            cancel(submitted)
            raise

    def _submit(self, jobs: Sequence[Any], submitted: dict[str, Any]) -> None:
        """Hand over `jobs`; they are entered in `submitted` by their name in the queue."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from harness.job import run
        from methods.spec import UserError

        executor = submitit.AutoExecutor(Path(self.config.hydra.sweep.dir) / "slurm", cluster="slurm")
        executor.update_parameters(**self.settings.parameters())
        for start in range(0, len(jobs), ARRAY):
            some = jobs[start : start + ARRAY]
            try:
                with _clean_environment():
                    handed = executor.map_array(run, [one.job for one in some])
            except (FailedJobError, FailedSubmissionError) as error:
                raise UserError(f"SLURM refused the jobs: {' '.join(str(error).split())}") from error
            for one, their in zip(some, handed, strict=True):
                one.log = Path(their.paths.stdout)
                submitted[their.job_id] = one


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without what an allocation around this process would hand down to the jobs, but with where SLURM's configuration is."""
    import submitit

    kept = {key: value for key, value in os.environ.items() if key == "SLURM_CONF"}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield


def queued() -> set[str] | None:
    """This user's jobs that wait or run, as `<job>` or `<array>_<index>`; None where SLURM does not answer."""
    try:
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%r"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    rows = [line.partition("|") for line in answer.stdout.splitlines()]
    return {name for name, _, reason in rows if reason != HELD} if answer.returncode == 0 else None


def cancel(names: Iterable[str]) -> None:
    """Cancel jobs; their cells are asked to save first."""
    arrays = sorted({name.partition("_")[0] for name in names})
    if arrays:
        subprocess.run(["scancel", *arrays], capture_output=True, timeout=60)
