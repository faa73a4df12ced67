"""Leaving the change of a cell's model as a sparse vector, for methods with the trait `sparse_delta`, and adding such vectors to a base.

    python -m harness.sparse_delta <checkpoint of the base> <delta> [<delta> ...] --out <folder>

writes base + sum of the deltas as a stock checkpoint. In Python: `apply(model, [read(folder), ...])` in place, whose answer `remove` takes.
The backbone's entries that differ lie in the file as positions and float32 differences (`methods/maths/sparse_vector.py`), the task
head whole, as it is no change of anything. Of several deltas the first gives the head.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.checkpoint import save_tensors
from harness.config import ModelConfig
from harness.store import remove as remove_folder
from harness.store import write_json
from methods.maths import sparse_vector
from methods.maths.sparse_vector import Entries, SparseVector
from methods.roles import head_names

FOLDER = "delta"
"""Beside `model/` in a cell's folder."""
WEIGHTS, ABOUT = "delta.safetensors", "delta.json"
INDEX, VALUE, WHOLE = "index:", "value:", "whole:"
"""Before the name of a parameter in the file."""


class Delta(NamedTuple):
    """What one cell changed, or what `apply` replaced."""

    vector: SparseVector
    """The backbone's entries, on the CPU."""
    head: dict[str, Tensor]
    """The parameters of the task head, whole."""


def between(loaded: nn.Module, stock: nn.Module) -> Delta:
    """What must be added to the loaded model to have the finalized one; tied parameters once."""
    heads = head_names(stock)
    before, after = _tensors(loaded), _tensors(stock)
    vector = sparse_vector.difference(_without(before, heads), _without(after, heads))
    return Delta(vector, {name: after[name].clone() for name in sorted(heads)})


def write(delta: Delta, stock: PreTrainedModel, base: ModelConfig, folder: Path) -> dict[str, int]:
    """Write the vector, `config.json` of the finalized model and what the base was; returns `entries` and `bytes` of the tensors' file."""
    remove_folder(folder)
    folder.mkdir(parents=True)
    save_tensors(folder / WEIGHTS, _packed(delta))
    stock.config.save_pretrained(folder)
    entries = sparse_vector.count(delta.vector)
    write_json(folder / ABOUT, {"base": base.id or base.name, "revision": base.revision, "entries": entries})
    return {"entries": entries, "bytes": (folder / WEIGHTS).stat().st_size}


def read(folder: Path) -> Delta:
    """The delta that `write` wrote, to the last bit."""
    tensors = load_file(folder / WEIGHTS)
    part = lambda prefix: {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}  # noqa: E731
    values = part(VALUE)
    return Delta({name: Entries(index.long(), values[name]) for name, index in part(INDEX).items()}, part(WHOLE))


@torch.no_grad()
def apply(model: nn.Module, deltas: Sequence[Delta]) -> Delta:
    """Add deltas to the model's parameters, in place; `ValueError` where one does not fit. A model without a task head takes none."""
    own, heads = dict(model.named_parameters()), head_names(model)
    head = {name: tensor for name, tensor in deltas[0].head.items() if name in heads}
    if unlike := [name for name, tensor in head.items() if own[name].shape != tensor.shape]:
        raise ValueError(f"the delta's {unlike[0]} has the shape {tuple(head[unlike[0]].shape)}, the model's {tuple(own[unlike[0]].shape)}")
    replaced = sparse_vector.apply(own, sparse_vector.add(delta.vector for delta in deltas))
    before = {name: own[name].detach().clone() for name in head}
    for name, tensor in head.items():
        own[name].copy_(tensor)
    return Delta(replaced, before)


@torch.no_grad()
def remove(model: nn.Module, replaced: Delta) -> None:
    """The model as it was before `apply`, bit for bit; the last application first."""
    own = dict(model.named_parameters())
    sparse_vector.remove(own, replaced.vector)
    for name, tensor in replaced.head.items():
        own[name].copy_(tensor)


def onto(base: Path, folders: Sequence[Path]) -> PreTrainedModel:
    """The checkpoint `base` with the deltas added, in the class and the dtype of the first one's cell."""
    config = transformers.AutoConfig.from_pretrained(folders[0])
    made = getattr(transformers, config.architectures[0])
    model = made.from_pretrained(base, config=config, dtype="auto", local_files_only=True)
    apply(model, [read(folder) for folder in folders])
    return model


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu() for name, p in model.named_parameters()}


def _without(tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _packed(delta: Delta) -> dict[str, Tensor]:
    """Positions take 4 bytes each unless a tensor has more than 2^31 entries."""
    packed = {f"{WHOLE}{name}": tensor for name, tensor in delta.head.items()}
    for name, (index, value) in delta.vector.items():
        packed |= {f"{INDEX}{name}": index.int() if int(index[-1]) < 2**31 else index, f"{VALUE}{name}": value}
    return packed


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m harness.sparse_delta", description="Write a base with sparse vectors added to it.")
    parser.add_argument("base", type=Path, help="folder of the base's checkpoint")
    parser.add_argument("deltas", type=Path, nargs="+", help="folders `delta/` of cells")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to write")
    given = parser.parse_args(argv)
    onto(given.base, given.deltas).save_pretrained(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
