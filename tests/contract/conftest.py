"""Which (method, tiny model) pairs run, and one shared trial per pair.

A method whose sources differ from `verified/<method>.json` meets every tiny model that it claims; `PAREBENCH_CONTRACT=all` (`make
contract-all`) or `PAREBENCH_CONTRACT=lora,dora` writes these files for the methods that are green. A verified method meets one tiny
model, another one for every method, so that a change of the harness meets most models; a few methods, one of each kind, meet an
encoder and a decoder.
"""

import json
import os
import re
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.compat import incompatible
from harness.compose import compose
from harness.registry import files, load_spec
from harness.resolve import Resolved, resolve
from harness.sourcetexts import sources
from tests.contract.toy import write_toy_data
from tests.contract.trial import Trial

VERIFIED = Path(__file__).with_name("verified")
FAILED: set[str] = set()
"""Methods of which a test failed in this run."""
EVERYBODY = "*"
CONF = Path(__file__).resolve().parents[2] / "conf"
KINDS = ("full_ft", "lora", "houlsby_adapter", "magnitude", "none")
"""Methods that always meet `REPRESENTATIVES`: everything trains, adapters that fold, adapters that do not, pruning, nothing."""
REPRESENTATIVES = ("tiny_bert", "tiny_llama")


def tiny_models() -> list[str]:
    """All from-config models."""
    return sorted(p.stem for p in (CONF / "model").glob("tiny_*.yaml"))


def methods() -> list[str]:
    """All methods but those of finished weights: they name no weights by themselves, and their life is tests/harness/test_external.py."""
    return sorted(slug for slug in files() if not load_spec(slug).traits.external)


@cache
def resolved(group: str, name: str) -> Resolved:
    """The checked configuration with one method or one model chosen."""
    return resolve(OmegaConf.create(compose([f"{group}={name}", "recipe.lr=1e-3"])))


def reason(method: str, model: str) -> str | None:
    """Why the pair is refused on the task that the method is tried on, or None."""
    base = resolved("method", method)
    task = resolved("task", "glue/sst2" if base.traits.trains else "wikitext2").cell.task
    task = replace(task, **({"context": 32} if hasattr(task, "context") else {"max_length": 32}))
    text = base.cell.calibration and replace(base.cell.calibration, length=32)
    return incompatible(replace(base, cell=replace(base.cell, model=resolved("model", model).cell.model, task=task, calibration=text)))


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """The pairs of this run."""
    chosen: list[tuple[str, str]] = []
    for method in asked() or methods():
        able = [model for model in tiny_models() if reason(method, model) is None]
        chosen += [(method, m) for m in (able if asked() or not _verified(method) else _representatives(method, able))]
    return tuple(chosen)


def asked() -> list[str]:
    """The methods whose full verification was asked for."""
    wanted = os.environ.get("PAREBENCH_CONTRACT", "")
    return methods() if wanted == "all" else [name for name in wanted.split(",") if name]


def _verified(method: str) -> bool:
    """Was the method, as it is now, seen green on every tiny model that it claims?"""
    file = VERIFIED / f"{method}.json"
    return file.exists() and json.loads(file.read_text()) == sources(method)


def _representatives(method: str, able: list[str]) -> list[str]:
    if method in KINDS:
        return [model for model in REPRESENTATIVES if model in able]
    return [able[zlib.crc32(method.encode()) % len(able)]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trial" in metafunc.fixturenames:
        chosen = pairs()
        metafunc.parametrize("trial", chosen, ids=["-".join(p) for p in chosen], indirect=True, scope="session")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def trials(tmp_path_factory: pytest.TempPathFactory, toy_data: Path):
    """A cache of trials, so that pairs can be compared with each other."""
    cache: dict[tuple[str, str], Trial] = {}

    def get(method: str, model: str) -> Trial:
        if (method, model) not in cache:
            cache[method, model] = Trial(method, model, tmp_path_factory.mktemp(f"{method}-{model}"), toy_data)
        return cache[method, model]

    return get


@pytest.fixture(scope="session")
def trial(request: pytest.FixtureRequest, trials) -> Trial:
    return trials(*request.param)


def _partial(config: pytest.Config) -> bool:
    """A worker of xdist, or a run of which `-k`, `-m`, a node id or `--lf` left tests out."""
    chosen = config.option.keyword or config.option.markexpr or any("::" in a for a in config.args) or getattr(config.option, "lf", False)
    return hasattr(config, "workerinput") or bool(chosen)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note whose test failed (with xdist, in the process that gathers); one that is nobody's is everybody's."""
    if report.failed:
        named = re.search(r"\[(\w+)-", report.nodeid)
        FAILED.add(named[1] if named and named[1] in files() else EVERYBODY)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After the full product of the methods that were asked for, note the sources that it covered, for those that were green."""
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not _partial(session.config)
    if whole and EVERYBODY not in FAILED:
        for method in set(asked()) - FAILED:
            (VERIFIED / f"{method}.json").write_text(json.dumps(sources(method), indent=1) + "\n")
