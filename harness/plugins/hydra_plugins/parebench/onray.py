"""The launcher `ray`: one Ray task per cell. (A file named ray.py here would read like the library.)"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra_plugins.parebench._cluster import ClusterLauncher

SAVING = 60.0
"""Seconds that running cells have to save after Ctrl-C."""


@dataclass
class RayConf:
    """Configuration of the launcher."""

    address: str | None
    """None = a Ray of its own on this machine."""
    workers: int
    """Cells at a time."""
    cpus: int
    gpus: float
    mem_gb: float | None
    retries: int
    """How often a cell is started again when its node is lost."""

    def __post_init__(self) -> None:
        from methods.spec import number

        for key, low in (("workers", 1), ("cpus", 1), ("gpus", 0), ("retries", 0)):
            number(f"hydra.launcher.{key}", getattr(self, key), low)
        if self.mem_gb is not None:
            number("hydra.launcher.mem_gb", self.mem_gb, 0, open_low=True)


class OnRay(ClusterLauncher):
    """Keeps at most `workers` tasks with Ray; Ctrl-C cancels them, and their cells save first."""

    package, requirement, schema = "ray", "ray>=2.60,<3", RayConf

    def run(self, cells: Sequence[Any]) -> dict[str, Any]:
        """As `ClusterLauncher.run`, connected to Ray; `UserError` where Ray has no room for a cell."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        ray.init(address=self.settings.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        try:
            self._check_room(ray)
            return super().run(cells)
        finally:
            ray.shutdown()

    def outcomes(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Keep at most `workers` tasks with Ray, and tell of each as it ends."""
        import ray

        from harness import job

        conf, queue, running = self.settings, list(reversed(jobs)), {}
        memory = {} if conf.mem_gb is None else {"memory": int(conf.mem_gb * 2**30)}
        task = ray.remote(num_cpus=conf.cpus, num_gpus=conf.gpus, max_retries=conf.retries, **memory)(job.run)
        try:
            while queue or running:
                while queue and len(running) < conf.workers:
                    one = queue.pop()
                    running[task.remote(one.job)] = one
                for done in ray.wait(list(running))[0]:
                    yield running.pop(done).outcome(_reason(ray, done))
        except (KeyboardInterrupt, GeneratorExit):
            _stop(ray, list(running))
            raise

    def _check_room(self, ray: Any) -> None:
        from methods.spec import UserError

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        conf = self.settings
        if self.settings.address is None and not any(n.get("CPU", 0) >= conf.cpus and n.get("GPU", 0) >= conf.gpus for n in nodes):
            here = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
            raise UserError(f"a cell with hydra.launcher.cpus={conf.cpus} hydra.launcher.gpus={conf.gpus:g} fits on no node; here: {here}")


def _reason(ray: Any, done: Any) -> str:
    try:
        return f"the task ended as {ray.get(done)}"
    except ray.exceptions.RayError as error:
        return f"the task was lost: {type(error).__name__}"


def _stop(ray: Any, running: list[Any]) -> None:
    for one in running:
        ray.cancel(one)
    if running:
        ray.wait(running, num_returns=len(running), timeout=SAVING)
