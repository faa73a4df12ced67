"""Leaving a stock transformers checkpoint, and proving in a fresh process that it is the model that was measured.

A method without the trait `folds` leaves what it inserted beside that checkpoint, in `adapter.safetensors` and `adapter.json` (its name and
configuration): stock transformers reads the folder without them, `reload` with them.
"""

import hashlib
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from harness.checkpoint import save_tensors
from harness.registry import method_class
from harness.seeding import generator
from harness.store import file_hash, write_json
from harness.typed import build, plain
from methods.base import Method
from methods.roles import unwrap

ADAPTER = "adapter"
"""Stem of the two files of what does not fold."""
PROBE_ROWS, PROBE_TOKENS = 4, 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
"""Largest absolute difference of logits accepted after a reload on the same machine."""


class ExportError(RuntimeError):
    """The exported checkpoint is not the model that was measured."""


class Unfolded(NamedTuple):
    """A method without the trait `folds`."""

    name: str
    method: Method


def unfolded(name: str, method: Method) -> Unfolded:
    """The method that takes its model apart: of a chain one of its steps."""
    return Unfolded(*getattr(method, "unfolds", (name, method)))


def probe_ids(vocabulary: int) -> Tensor:
    """Fixed token ids (rows x tokens) on which a model and its export are compared; the first 10 ids are avoided."""
    return torch.randint(min(10, vocabulary // 2), vocabulary, (PROBE_ROWS, PROBE_TOKENS), generator=generator(0, "export"))


@torch.inference_mode()
def probe_logits(model: nn.Module) -> Tensor:
    """Logits of the probe ids in eval mode, float32 on CPU."""
    training = model.training
    model.eval()
    ids = probe_ids(model.config.get_text_config().vocab_size).to(next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    return logits.float().cpu()


def export(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, unfolded: Unfolded | None = None) -> nn.Module:
    """Save model, tokenizer and probe logits; returns the stock model that was saved. `unfolded`: what takes `model` apart first.

    A class that transformers does not ship is an `ExportError`.
    """
    ids = probe_ids(model.config.get_text_config().vocab_size)
    trainable = torch.tensor([parameter.requires_grad for parameter in model.parameters()])
    probe = {"input_ids": ids, "logits": probe_logits(model), "trainable": trainable}
    stock, adapter = unfolded.method.detach(model) if unfolded else (model, {})
    name = type(stock).__name__
    if getattr(transformers, name, None) is not type(stock):
        raise ExportError(f"the finalized model is a {name}, not a stock transformers class")
    shutil.rmtree(folder, ignore_errors=True)
    stock.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if unfolded:
        save_tensors(folder / f"{ADAPTER}.safetensors", adapter)
        write_json(folder / f"{ADAPTER}.json", {"method": unfolded.name, "config": plain(unfolded.method.config)})
    save_tensors(probe_file(folder), probe)
    return stock


def reload(folder: Path, dtype: torch.dtype | str = "auto", attention: str | None = None) -> nn.Module:
    """The exported model, loaded as any user would, with the adapter beside it if there is one; `auto` = in its saved dtype."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    stock = getattr(transformers, architecture).from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, local_files_only=True
    )  # fmt: skip
    return _attached(folder, stock, dtype) if adapter_of(folder) else stock


def adapter_of(folder: Path) -> dict[str, Any]:
    """`method` and `config` of what lies beside an exported stock checkpoint; empty where nothing does."""
    path = folder / f"{ADAPTER}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _attached(folder: Path, stock: nn.Module, dtype: torch.dtype | str) -> nn.Module:
    told = adapter_of(folder)
    tensors = load_file(folder / f"{ADAPTER}.safetensors")
    if dtype != "auto":
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    made = method_class(told["method"])
    later = {f.name: f.metadata["added"] for f in fields(made.Config) if "added" in f.metadata}  # left out where they hold
    return made(build(made.Config, later | told["config"], "method")).attach(stock, tensors).eval()


def as_measured(folder: Path, dtype: torch.dtype, attention: str | None) -> nn.Module:
    """The exported model in eval mode, so that it gives the numbers to the last digit that it gave before it was exported.

    PyTorch takes other kernels for parameters that require gradients, also where none are computed, so these flags come back too.
    """
    model = reload(folder, dtype, attention)
    probe = probe_file(folder)
    trainable = load_file(probe).get("trainable") if probe.is_file() else None  # exports from before it was noted have none
    for parameter, flag in zip(model.parameters(), () if trainable is None else trainable.tolist(), strict=trainable is not None):
        parameter.requires_grad_(flag)
    return model.eval()


def weights_hash(folder: Path) -> str:
    """sha256 over the names and contents of an exported folder's weight files."""
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256("".join(f"{file.name} {file_hash(file)}\n" for file in files).encode()).hexdigest()


def verify(folder: Path, device: str) -> dict[str, Any]:
    """Reload the export and compare its logits; returns what the record keeps (class, difference, and whose adapter lies beside it).

    Raises `ExportError` when the difference exceeds `TOLERANCE` of the saved dtype.
    """
    model = reload(folder).to(device)
    expected = load_file(probe_file(folder))["logits"]
    difference = (probe_logits(model) - expected).abs().max().item()
    limit = TOLERANCE[next(model.parameters()).dtype]
    if not difference <= limit:
        raise ExportError(f"logits of the reloaded export differ by {difference:.2e}; allowed {limit:.0e}")
    beside = {"adapter": told["method"]} if (told := adapter_of(folder)) else {}
    return {"class": type(unwrap(model)).__name__, "max_abs_difference": difference} | beside


def probe_file(folder: Path) -> Path:
    """Where the probe of an exported folder lies: beside it, so that the folder holds the model alone."""
    return folder.with_name(f"{folder.name}.probe.safetensors")
