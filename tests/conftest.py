"""Fixtures that name real data and models; a test that needs what is not there skips with the reason."""

import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]


LIFE = re.compile(r"tests/contract/.*\[\w+-(tiny_\w+)")


class ByLife(LoadScopeScheduling):
    """With `--dist loadscope` a module's tests stay in one process, those of the contract all that meet one tiny model.

    So what a module makes once is made once, a life of a pair is lived once, and so is the reference that all methods on a model meet.
    (`loadgroup` does not group with pytest 9.2: xdist 3.8 writes groups into ids that pytest no longer reads.)
    """

    def _split_scope(self, nodeid: str) -> str:
        life = LIFE.match(nodeid)
        return life[1] if life else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Give xdist its scheduler."""
    return ByLife(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(autouse=True)
def _loggers_speak() -> None:
    """Hydra's `job_logging: disabled` silences the root and every logger that exists; no test that reads log lines may depend on order."""
    logging.root.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith(("analysis", "harness", "tasks")) and isinstance(logger, logging.Logger):
            logger.disabled = False


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        pytest.skip(f"{what} is not on this machine: {path.name} is absent (see README, 'Tests on real data')")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A local data folder in hub columns (PAREBENCH_TEST_DATA, else ../shared/data)."""
    return _folder(Path(os.environ.get("PAREBENCH_TEST_DATA", ROOT.parent / "shared" / "data")), "the local data folder")


@pytest.fixture(scope="session")
def shared_models(shared_data: Path) -> Path:
    """Small real models beside the data folder."""
    return _folder(shared_data.parent / "models", "the local models folder")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The prefetched assets (PAREBENCH_ASSETS, else assets/)."""
    return _folder(Path(os.environ.get("PAREBENCH_ASSETS", ROOT / "assets")), "the assets folder (`parebench-prefetch quickstart`)")


@pytest.fixture(scope="session")
def minilm_dir(assets: Path) -> Path:
    """all-MiniLM-L6-v2 as a model folder."""
    from harness.assets import model_folder

    return _folder(model_folder("minilm", assets) or assets / "minilm", "MiniLM")


@pytest.fixture(scope="session")
def smollm2_dir(assets: Path) -> Path:
    """SmolLM2-135M-Instruct, dequantised, as a model folder."""
    from harness.assets import model_folder

    return _folder(model_folder("smollm2_135m", assets) or assets / "smollm2_135m", "SmolLM2")
