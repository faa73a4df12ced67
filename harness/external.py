"""Finished weights from elsewhere (trait `external`): where they lie, what they are, and what identifies them. Torch-free."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.config import ModelConfig
from harness.resolve import Resolved
from harness.typed import plain
from harness.weights import CACHE, content_hash
from methods.spec import Place, UserError

ADAPTER, CHECKPOINT = "adapter", "checkpoint"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNFOLDED = "adapter.json"
"""Where an export of this package (`harness.export`) has modules beside the stock checkpoint."""
FILES = ["*.safetensors", "*.json"]
"""What is fetched from the hub: no pickle, no code."""


def half(resolved: Resolved) -> dict[str, Any]:
    """The method's part of the cell id: its keys, with the content in the place of the place; empty for other methods.

    `UserError` where a folder does not hold what is asked for. A hub repository is not looked into before its cell runs.
    """
    if not resolved.traits.external:
        return {}
    cell = resolved.cell
    place = cell.method_config.place()
    if place.path:
        check(place, folder(place, offline=True), cell.model)
    where = {field.name for field in fields(Place)}
    own = {key: value for key, value in plain(cell.method_config).items() if key not in where}
    return {"method": {"name": cell.method, **own, "weights": fingerprint(place, resolved.run.assets)}}


def fingerprint(place: Place, assets: Path | str) -> str:
    """`sha256:<hex>` of a folder's content, or `hub:<repository>@<commit>`."""
    if place.hub:
        return f"hub:{place.hub}@{place.revision}"
    return f"sha256:{content_hash(folder(place, offline=True), Path(assets) / CACHE)}"


def folder(place: Place, offline: bool) -> Path:
    """The local folder, fetched from the hub first unless `offline`."""
    if place.hub:
        return _fetched(place, offline)
    path = Path(place.path or "").expanduser()
    if not path.is_dir():
        raise UserError(f"method.path={place.path} is no folder; give the folder of a checkpoint or of a PEFT adapter")
    return path


def kind(path: Path) -> str:
    """`adapter` or `checkpoint`, by the files of a folder; `UserError` where it is neither."""
    if (path / ADAPTER_CONFIG).is_file():
        return ADAPTER
    if (path / "config.json").is_file():
        return CHECKPOINT
    raise UserError(f"{path} holds neither config.json nor {ADAPTER_CONFIG}; give the folder of a checkpoint or of a PEFT adapter")


def check(place: Place, path: Path, model: ModelConfig) -> None:
    """What the JSON files tell without a weight; `UserError` on the first thing that cannot be evaluated as `model`."""
    found = kind(path)
    if place.kind not in ("auto", found):
        raise UserError(f"method.kind={place.kind}, but {path} is of kind {found}; give method.kind={found}")
    if found == ADAPTER:
        _check_adapter(path, model)
    else:
        _check_checkpoint(path, model)


def _check_adapter(path: Path, model: ModelConfig) -> None:
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{path} has no {ADAPTER_WEIGHTS}; save the adapter as safetensors (pickled weights are not read)")
    base = _json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    if model.source == "hub" and base.count("/") == 1 and not Path(base).exists() and base.lower() != str(model.id).lower():
        raise UserError(f"{path} adapts {base}, and model {model.name} is {model.id}; take the model that it was trained on")


def _check_checkpoint(path: Path, model: ModelConfig) -> None:
    settings, wanted = _json(path / "config.json"), model.architecture["model_type"]
    if (path / UNFOLDED).is_file():
        method = _json(path / UNFOLDED).get("method")
        raise UserError(f"{path} is a stock checkpoint with modules of {method} beside it ({UNFOLDED}); give a stock checkpoint alone")
    if settings.get("model_type") != wanted:
        raise UserError(f"{path} is of type {settings.get('model_type')}, and model {model.name} is of type {wanted}; take its own model")
    if "quantization_config" in settings:
        raise UserError(f"{path} holds quantised weights (quantization_config); save it dequantised, in a floating-point type")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def _fetched(place: Place, offline: bool) -> Path:
    import httpx
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(place.hub, revision=place.revision, allow_patterns=FILES, ignore_patterns=["*/*"], local_files_only=offline)
        )
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        at = f"method.hub={place.hub} at {place.revision}"
        raise UserError(f"{at} cannot be fetched: {reason}; check name and network, or give method.path=<folder>") from error
