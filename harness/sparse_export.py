"""The export of a sparse model in the bytes that its zeros leave it: one file, from which every tensor comes back bit for bit.

Each tensor is kept dense, as values + bit mask, or as values + N:M positions, whichever is smallest (`methods/maths/packed.py`). It
is a file for storage and transport: `unpacked` gives the tensors of the stock checkpoint.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.store import remove
from methods.maths.packed import Layout, pack, unpack

FILE = "model.packed.safetensors"
"""Beside `model/` in a cell's folder."""


def write(folder: Path, path: Path) -> dict[str, int]:
    """Pack the `*.safetensors` of an exported folder into `path`; returns its `bytes`, headers included."""
    layouts: dict[str, str] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in _tensors(sorted(folder.glob("*.safetensors"))):
        layout, packed = pack(tensor)
        layouts[name] = json.dumps(asdict(layout))
        parts |= {f"{name}:{part}": value.contiguous() for part, value in packed.items()}
    remove(path)
    save_file(parts, path, metadata=layouts)
    return {"bytes": path.stat().st_size}


def unpacked(path: Path) -> dict[str, Tensor]:
    """The tensors of the checkpoint by name."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _tensors([path]):
        name, _, part = key.rpartition(":")
        parts.setdefault(name, {})[part] = tensor
    return {name: unpack(layout, parts[name]) for name, layout in layouts(path).items()}


def layouts(path: Path) -> dict[str, Layout]:
    """How each tensor is packed."""
    with safe_open(path, "pt") as file:
        told = {name: json.loads(text) for name, text in file.metadata().items()}
    return {name: Layout(**{**layout, "shape": tuple(layout["shape"])}) for name, layout in told.items()}


def _tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                yield name, file.get_tensor(name)
