"""The child process of `harness.matching`: solves for a key of a method by counting prepared meta models. It imports torch.

One JSON request a line on standard input, one answer a line: `value`, or `refused` with the sentence for the user.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from harness.config import DTYPES, Cell
from harness.cost import count_parameters, shipped, unique_parameters
from harness.expressions import BYTES, MEANING
from harness.models import on_meta
from harness.params import MetaContext, UncountableError
from harness.registry import load_spec, method_class
from harness.resolve import resolve
from harness.search import NoPositionError, nearest
from methods.spec import UserError
from tasks.base import Head
from tasks.registry import build

FINENESS = 10**8
"""Steps between 0 and 1 in which a fraction is solved for."""
LARGEST = 24
"""Integers up to 2 to this power are tried."""


def solve(request: dict[str, Any]) -> int | float:
    """The value of `key` under which the count is nearest to and not above `budget`; `values`: the configuration with an allowed one.

    `UserError` where no value of it can meet the budget.
    """
    cell = resolve(OmegaConf.create(request["values"])).cell
    head = build(cell.task, sources=None).head
    _refuse_more_than_the_model(request, cell, head)
    key, budget = request["key"], request["budget"]
    value = _fraction if request["fraction"] else int
    count = _counter(cell, head, key, value, request["kind"])
    try:
        return value(nearest(count, budget, _fractions() if request["fraction"] else (2**power for power in range(LARGEST + 1))))
    except NoPositionError as error:
        counts = error.counts
    if len(set(counts.values())) > 1 and max(counts.values()) == budget:
        return value(max(counts, key=lambda position: counts[position]))
    raise UserError(_impossible(request, cell.method, {value(position): counted for position, counted in counts.items()}))


def counted(cell: Cell, head: Head | None, kind: str) -> int:
    """Trainable parameters outside the head, or shipped bytes (`harness.cost.shipped`), of the prepared meta model."""
    model = on_meta(cell.model, head).to(getattr(torch, DTYPES[cell.precision]))
    model = method_class(cell.method)(cell.method_config).prepare(model, MetaContext(cell))
    trains = load_spec(cell.method).adjusted(cell.method_config).trains
    return shipped(model, trains)["bytes"] if kind == BYTES else count_parameters(model, trains)["trainable_method"]


def _refuse_more_than_the_model(request: dict[str, Any], cell: Cell, head: Head | None) -> None:
    """No technique is sized beyond its model, and a library may allocate real memory for what is only to be counted."""
    model = on_meta(cell.model, head).to(getattr(torch, DTYPES[cell.precision]))
    sizes = [p.numel() * (p.element_size() if request["kind"] == BYTES else 1) for p in unique_parameters(model).values()]
    if request["budget"] > sum(sizes):
        what = f"{sum(sizes):,} {'bytes' if request['kind'] == BYTES else 'parameters'} of {cell.model.name} itself"
        raise UserError(f"method.{request['key']}={request['text']} is more than the {what}; give a smaller budget")


def _counter(cell: Cell, head: Head | None, key: str, value: Callable[[int], int | float], kind: str) -> Callable[[int], int | None]:
    """Position -> count; None where the method's configuration or the model does not allow the value. Counted once."""
    known: dict[int, int | None] = {}

    def count(position: int) -> int | None:
        if position not in known:
            try:
                known[position] = counted(replace(cell, method_config=replace(cell.method_config, **{key: value(position)})), head, kind)
            except UncountableError:
                raise
            except UserError:
                known[position] = None
        return known[position]

    return count


def _fraction(position: int) -> float:
    return position / FINENESS


def _fractions() -> Iterator[int]:
    """Both ends of (0, 1), then the closed ends, then what lies between."""
    yield from (1, FINENESS - 1, FINENESS, 0)
    for power in range(1, 8):
        yield from (10**power, FINENESS - 10**power)


def _impossible(request: dict[str, Any], method: str, counts: dict[int | float, int]) -> str:
    given, meaning = f"method.{request['key']}={request['text']}", MEANING[request["kind"]]
    if len(set(counts.values())) <= 1:
        return f"{given}: the {meaning} of {method} do not depend on method.{request['key']}; give a number"
    low, high = min(counts, key=lambda v: counts[v]), max(counts, key=lambda v: counts[v])
    if counts[low] > request["budget"]:
        return f"{given} is too small: method.{request['key']}={low} already has {counts[low]:,} {meaning}; give a larger budget"
    return f"{given} is too large: method.{request['key']}={high} has no more than {counts[high]:,} {meaning}; give a smaller budget"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What goes back for one request."""
    try:
        return {"value": solve(request)}
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # a method that shapes alone cannot prepare; the parent names it and stops
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]} ({Path(where.filename).name}, line {where.lineno})"
        return {"refused": f"method={request['values']['method']['name']} cannot be counted without weights: {what}"}


def main() -> None:
    """Answer until the parent closes its end; whatever libraries print goes nowhere."""
    out, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        out.write(json.dumps(answer(json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
