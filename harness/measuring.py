"""A finished cell is measured on more protocols: its kept model is loaded in this fresh process, nothing is trained."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from harness import export, lease, models, outcome, protocols
from harness.config import DTYPES
from harness.evaluation import Evaluator, eval_options
from harness.identity import identify
from harness.numerics import numerics, resolve_device
from harness.record import Record, Result
from harness.registry import method_class
from harness.resolve import Resolved, resolve
from harness.store import Store
from methods.base import ModelSpec
from methods.spec import UserError
from tasks.registry import build
from tasks.sources import Sources


def measure(container: dict[str, Any]) -> Record:
    """Add what a finished cell lacks of the asked protocols and write its record anew; the results that it has stay as they are.

    `UserError` where the record or the weights that it was measured with are gone.
    """
    resolved = resolve(OmegaConf.create(container))
    store, cell = Store(resolved.run.store), identify(resolved).cell
    record, device = store.record(cell), resolve_device(resolved.run.device)
    if record is None:
        raise UserError(f"cell {cell} has no record in {store.root}; type the command again, which makes it")
    missing = protocols.missing(record, resolved)
    for variant, load in ((protocols.MAIN, _exported), (protocols.BEFORE, _as_loaded)):
        names = [name for name, lacking in missing if lacking == variant]
        if names:
            _measure(resolved, record, variant, names, *load(resolved, record, device), device)
    record.protocols |= protocols.described({name: resolved.protocols[name] for name, _ in missing})
    record.attempts = lease.count(store.folder(cell))
    store.write(record)
    with suppress(FileNotFoundError):
        (store.folder(cell) / outcome.FILE).unlink()
    return record


def _measure(
    resolved: Resolved, record: Record, variant: str, names: list[str], model: nn.Module, tokenizer: PreTrainedTokenizerBase, device: str
) -> None:
    """Put the results of one of the cell's models on some protocols into its record."""
    now = numerics(device, resolved.cell.precision)
    for name in names:
        options = eval_options(resolved.cell, resolved.run, device)
        task = build(resolved.protocols[name], _sources(resolved))
        evaluator = Evaluator(task, tokenizer, Store(resolved.run.store).folder(record.cell), options, resolved.cell.seed)
        evaluator.vouched, evaluator.numerics = set(record.files), now if now != record.numerics else {}
        for result in evaluator.run(model, variant):
            _add(record, result, name)


def _sources(resolved: Resolved) -> Sources:
    return Sources(resolved.data_dir, Path(resolved.run.assets), resolved.run.offline)


def _add(record: Record, result: Result, name: str) -> None:
    """A result takes the place of one of the same protocol, made by another version or on other rows."""
    kept = [held for held in record.results if (held.protocol, held.variant) != (result.protocol, result.variant)]
    record.results = [*kept, result]
    record.data[f"{name}:evaluation"] = result.rows


def _exported(resolved: Resolved, record: Record, device: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    folder = Store(resolved.run.store).folder(record.cell) / "model"
    if record.weights and export.weights_hash(folder) != record.weights:
        raise UserError(f"{folder} holds other weights than cell {record.cell} was measured with; make it anew with run.force=true")
    spec = _spec(resolved)
    model = export.as_measured(folder, getattr(torch, spec.dtype), spec.attention).to(device)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _as_loaded(resolved: Resolved, record: Record, device: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model before the method touches it; one without a head, since a classifier has no such protocols."""
    model, tokenizer, _ = models.load(resolved.cell.model, None, _spec(resolved), resolved.cell.seed, _sources(resolved))
    return model.to(device), tokenizer


def _spec(resolved: Resolved) -> ModelSpec:
    return method_class(resolved.cell.method)(resolved.cell.method_config).load(ModelSpec(dtype=DTYPES[resolved.cell.precision]))
