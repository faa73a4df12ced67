"""What a cell reads of the finished cells that it is made from: their models, and what they cost."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from harness import export
from harness.record import Record
from harness.seeding import untouched_generators
from harness.store import Store
from methods.spec import UserError


def model(store: Store, needs: Mapping[str, str], name: str, device: str, dtype: str) -> nn.Module:
    """The exported model of the cell that is needed as `name`: frozen, in eval mode, no generator drawn from.

    `needs`: name -> cell id. `UserError` for a name that is not needed, and where the record or its weights are gone or changed.
    """
    record, folder = _record(store, needs, name), store.folder(needs[name]) / "model"
    if not folder.is_dir():
        raise _gone(needs, name, store, "has no kept weights")
    if record.weights and export.weights_hash(folder) != record.weights:
        raise _gone(needs, name, store, "has other weights than it was measured with")
    with untouched_generators():
        loaded = export.reload(folder, getattr(torch, dtype))
    return loaded.to(device).requires_grad_(False).eval()


def inherited(store: Store, needs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Costs of all cells that this one is made from: name -> `cell`, `flops` (training), `seconds`, `examples` (seen) of its own.

    What a needed cell was itself made from stands under `<name>/<its name>`. A cell that is reached twice is listed once, so the sum
    over the entries is what this cell inherited.
    """
    records = {name: _record(store, needs, name) for name in needs}
    listed = [(name, _own(record)) for name, record in records.items()]
    listed += [(f"{name}/{deep}", cost) for name, record in records.items() for deep, cost in record.costs.get("inherited", {}).items()]
    first = {cost["cell"]: name for name, cost in reversed(listed)}
    return {name: cost for name, cost in listed if first[cost["cell"]] == name}


def _own(record: Record) -> dict[str, Any]:
    flops = (record.costs.get("flops") or {}).get("training") or 0.0
    return {"cell": record.cell, "flops": flops, "seconds": record.seconds, "examples": sum(phase.examples for phase in record.phases)}


def _record(store: Store, needs: Mapping[str, str], name: str) -> Record:
    if name not in needs:
        known = ", ".join(needs) or "nothing"
        raise UserError(f"ctx.cell({name!r}) is not among the cells that this method needs ({known}); name it in Config.dependencies")
    record = store.record(needs[name])
    if record is None:
        raise _gone(needs, name, store, "has no record")
    return record


def _gone(needs: Mapping[str, str], name: str, store: Store, what: str) -> UserError:
    return UserError(f"cell {needs[name]}, needed as {name}, {what} in {store.root}; type the command again, which makes it first")
