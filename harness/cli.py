"""The command `parebench`, and the one place where every mistake becomes one sentence on stderr with exit code 2. Torch-free."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException, SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import sweeps
from harness import expressions, usage
from harness.config import FAILURES
from harness.nearmiss import unknown
from harness.usage import options
from methods.spec import UserError

if TYPE_CHECKING:
    from harness.dispatch import Outcome
    from harness.plan import Planned

MISTAKES = (HydraException, OmegaConfBaseException, UserError)
GROUPS = ("method", "model", "task", "budget", "compute")
BAD_INPUT, INTERRUPTED = 2, 130


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """`parebench` with these arguments; its exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    if {"--help", "-h"} & set(argv):
        sys.stdout.write(usage.text())
        return 0
    before = sys.argv
    command = Command()
    try:
        sys.argv = ["parebench", *_arguments(argv)]
        register_sweeps()
        expressions.register()
        command.hydra_main()
        return command.finish()
    except MISTAKES as error:
        sys.stderr.write(f"parebench: {sentence(error, argv)}\n")
        return BAD_INPUT
    except ValueError as error:
        if not _raised_by_hydra(error):
            raise
        sys.stderr.write(f"parebench: {_first_line(error)}; type parebench --help for what is allowed\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED  # `harness.stopping` has said so, and the running cells have saved
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


class Command:
    """One invocation: what Hydra calls for each composed cell, and what is left to report when there was one only."""

    def __init__(self) -> None:
        self.single: tuple[Planned, Outcome] | None = None
        self.mistake: Exception | None = None

    def hydra_main(self) -> None:
        """Let Hydra read `sys.argv`, compose, and call `job`."""
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(self.job)()

    def job(self, cfg: DictConfig) -> "Outcome | None":
        """Run one composed cell. Hydra prints lines of its own when this raises, so a mistake is kept for `finish`."""
        from harness import dispatch, plan, schedule
        from harness.stopping import stops

        try:
            planned = plan.check(*self._asked(cfg))
            if planned.state == plan.SKIPPED:
                raise UserError(planned.reason)
            dispatch.check_devices([planned])
        except MISTAKES as error:
            self.mistake = error
            return None
        plan.join([planned], sys.argv[1:])
        with stops(), self._mirrored(planned):
            self.single = schedule.in_turn(plan.in_order([planned]) or [planned], dispatch.run, dispatch.stopped)
        return self.single[1]

    def _asked(self, cfg: DictConfig) -> tuple[Any, ...]:
        """What `plan.check` takes. A single cell that a person types is asked for, however it or what it needs failed before."""
        asked_for = [f"run.retry=[{','.join(FAILURES)}]"] if HydraConfig.get().mode == RunMode.RUN else []
        if asked_for and OmegaConf.is_dict(cfg.run):
            cfg.run.retry = list(FAILURES)
        return cfg, list(HydraConfig.get().overrides.task), lambda overrides: hydra.compose("config", overrides=[*overrides, *asked_for])

    def _mirrored(self, planned: "Planned") -> AbstractContextManager[None]:
        """The mirror of a single cell; those of a sweep have the sweep's."""
        from harness import mirror
        from harness.store import ADHOC

        run = planned.resolved.run
        single = HydraConfig.get().mode == RunMode.RUN
        return mirror.started(planned.resolved.tracker, run.store, run.sweep or ADHOC) if single else nullcontext()

    def finish(self) -> int:
        """Report a single run; its exit code."""
        from harness import summary
        from harness.worker import REFUSED

        if self.mistake is not None:
            raise self.mistake
        if self.single is None:
            return 0
        planned, outcome = self.single
        if outcome.code == REFUSED:
            raise UserError(outcome.lines[-1])
        if outcome.status == "stale":
            way = "give run.stale=rerun to make it anew or run.stale=keep to take it"
            raise UserError(f"cell {outcome.cell} is {outcome.lines[-1]}; {way}")
        summary.show_cell(planned, outcome)
        return int(outcome.status != "done")


def register_sweeps() -> None:
    """Make every `sweeps/<name>.yaml` an option of the Hydra group `sweeps`, for a checkout and for a wheel alike."""
    for file in sorted(Path(sweeps.__file__).parent.glob("*.yaml")):
        node = OmegaConf.create(yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        ConfigStore.instance().store(group="sweeps", name=file.stem, node=node, package="_global_", provider="parebench")


def sentence(error: Exception, argv: Sequence[str] = ()) -> str:
    """One line: what was given, what is allowed (with the nearest name), what to type."""
    from harness.plan import PlanError

    if isinstance(error, PlanError):
        return f"{sentence(error.cause, error.overrides)} (in the cell {' '.join(error.overrides)}; no cell was started)"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read; write key=value, a list as key=[a,b], text with signs as 'key=\"...\"'"
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, SearchPathException):
        return f"{_first_line(error)}; give --config-dir an existing folder"
    if isinstance(error, HydraException):
        return _composition(_first_line(error), argv)
    return _first_line(error)


def _composition(line: str, argv: Sequence[str]) -> str:
    if match := re.match(r"Could not override '([^']+)'", line):
        return _unknown_key(match.group(1), argv)
    if match := re.match(r"Ambiguous value for argument '([^']+)'", line):
        return f"{match.group(1)} names several values; type parebench -m to run each, or write a list as key=[a,b]"
    return f"{line}; type parebench --help for what is allowed"


def _unknown_key(key: str, argv: Sequence[str]) -> str:
    """Names what the block of a misspelt key holds, by composing once more without the bad override."""
    head, _, tail = key.rpartition(".")
    block = _block(head, argv)
    if not OmegaConf.is_dict(block):
        return f"{key} is unknown; {head or 'the top level'} has no keys of its own"
    names = [str(name) for name in block if name not in ("name", "recipes", "kind", "hydra", "_target_")]
    return unknown(f"{head}." if head else "the key ", tail, names, sign="")


def _block(head: str, argv: Sequence[str]) -> Any:
    chosen = [a for a in argv if re.fullmatch(rf"({'|'.join(GROUPS)}|hydra/launcher)=[^,\[]+", a)]
    with hydra.initialize_config_module("conf", version_base="1.3"):
        try:
            cfg = hydra.compose("config", overrides=chosen, return_hydra_config=True)
        except HydraException:
            cfg = hydra.compose("config", return_hydra_config=True)
    return OmegaConf.select(cfg, head) if head else cfg


def _missing(error: MissingConfigException) -> str:
    group, _, given = (error.missing_cfg_file or "").partition("/")
    if not given:
        return f"{_first_line(error)}; type parebench --help for what is allowed"
    allowed = sorted({*(error.options or ()), *options(group)})
    if group == "hydra":
        group, given = given.rsplit("/", 1)
        return unknown(f"hydra/{group}", given, error.options or ())
    return unknown(group if group != "sweeps" else "+sweeps", given.removesuffix(".yaml"), allowed)


def _arguments(argv: Sequence[str]) -> list[str]:
    """The arguments in the order that Hydra's parser insists on; `UserError` on a wrong flag instead of a page of usage."""
    parser = get_args_parser()
    parser.error = _refuse_flag
    given = parser.parse_intermixed_args(list(argv))
    flags = [argument for argument in argv if argument not in given.overrides]
    many = given.multirun or any(override.startswith("+sweeps=") for override in given.overrides)
    return flags + [_per_cell(override) if many else override for override in given.overrides]


def _per_cell(override: str) -> str:
    """`method.r=4` as a choice of one: Hydra then applies it to the cells only, not to the sweep's default method, which may lack it."""
    key, _, value = override.partition("=")
    if not re.match(rf"({'|'.join(GROUPS)})\.", key) or OverridesParser.create().parse_override(override).is_sweep_override():
        return override
    return f"{key}=choice({value})"


def _refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; type parebench --help for what is allowed")


def _raised_by_hydra(error: ValueError) -> bool:
    """Whether Hydra's own argument checks raised it; anywhere else a plain ValueError is a bug and keeps its traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").startswith("hydra.")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    main()
