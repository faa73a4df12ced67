"""Resumable checkpoints: safetensors and JSON only, written aside, sealed with the sizes of their files, then renamed."""

import json
import os
import random
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.store import write_json

SEAL = "COMPLETE"


def write_sealed(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a new folder, seal it with their sizes and move it into place as `folder`."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    fill(aside)
    for path in aside.iterdir():
        _flush(path)  # a seal that survives a loss of power must not vouch for files that did not
    write_json(aside / SEAL, {p.name: p.stat().st_size for p in sorted(aside.iterdir())})
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def sweep_aside(folder: Path) -> None:
    """Delete what killed processes left half-written in `folder` by `write_sealed`; call it where nobody writes."""
    for aside in folder.glob(".*"):
        shutil.rmtree(aside, ignore_errors=True)


def verified(folder: Path) -> bool:
    """Is the folder sealed, with every file there at its recorded size?"""
    try:
        sizes = json.loads((folder / SEAL).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training may have changed: parameters that require gradients, and all buffers (masks, statistics)."""
    tensors = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return tensors | {f"buffer:{name}": b for name, b in model.named_buffers()}


def restore_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copy saved tensors back in place; a name or shape that does not fit is an error."""
    own = dict(model.named_parameters()) | {f"buffer:{name}": b for name, b in model.named_buffers()}
    missing = sorted(set(tensors) - set(own))
    if missing:
        raise KeyError(f"the checkpoint holds {missing[:3]} that the model has not")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if own[name].shape != tensor.shape:
                raise ValueError(f"{name}: checkpoint shape {tuple(tensor.shape)}, model shape {tuple(own[name].shape)}")
            own[name].copy_(tensor)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors (contiguous copies on CPU, shared storage duplicated)."""
    save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}, path)


def save_optimizer(folder: Path, state: dict[str, Any]) -> None:
    """Write an optimizer's state by name (`harness.optimizers`): tensors to safetensors, everything else (JSON values) beside it."""
    tensors, plain = _split(state)
    save_tensors(folder / "optimizer.safetensors", tensors)
    write_json(folder / "optimizer.json", plain)


def read_optimizer(folder: Path) -> dict[str, Any]:
    """The state by name that `save_optimizer` wrote."""
    tensors = load_file(folder / "optimizer.safetensors")
    return _join(json.loads((folder / "optimizer.json").read_text()), tensors)


def save_generators(folder: Path) -> None:
    """Write the state of Python's, NumPy's and torch's global generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    states = {"cpu": torch.get_rng_state(), "numpy": torch.from_numpy(keys.astype(np.int64))}
    states |= {f"cuda{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())} if torch.cuda.is_available() else {}
    save_tensors(folder / "rng.safetensors", states)
    plain = {"python": [version, list(internal), gauss_next], "numpy": [kind, int(position), int(has_gauss), float(gauss)]}
    write_json(folder / "rng.json", plain)


def load_generators(folder: Path) -> None:
    """Take back what `save_generators` wrote."""
    states, plain = load_file(folder / "rng.safetensors"), json.loads((folder / "rng.json").read_text())
    version, internal, gauss_next = plain["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, position, has_gauss, gauss = plain["numpy"]
    np.random.set_state((kind, states["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda{i}"] for i in range(torch.cuda.device_count())])


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _split(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    for name, values in state["state"].items():
        tensors |= {f"{name}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        plain["state"][name] = {key: v for key, v in values.items() if not isinstance(v, Tensor)}
    return tensors, plain


def _join(plain: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in plain["state"].items()}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition(".")
        state[name][key] = tensor
    return {"param_groups": plain["groups"], "state": state}
