"""The commands that make the cells of a page again, where they are few enough to compose each."""

import json
import shlex
from itertools import groupby
from pathlib import Path

import pandas as pd

from analysis.load import DONE
from analysis.reproduce import reproduction
from harness.record import Record
from harness.store import Store
from methods.spec import UserError

CONFIGURATIONS = 40
"""Composing one takes a quarter of a second."""


def remakes(frame: pd.DataFrame, store: Path) -> dict[str, str]:
    """Finished cell -> its command for a shell, or the sentence why there is none; empty for more than `CONFIGURATIONS`.

    Cells that differ by nothing but the seed share one composition.
    """
    done = frame[frame["status"] == DONE]
    if len(done[["label", "model", "task"]].drop_duplicates()) > CONFIGURATIONS:
        return {}
    records = sorted(Store(store).records(done["cell"].unique()), key=_but_the_seed)
    found = {}
    for _, alike in groupby(records, key=_but_the_seed):
        first, *others = alike
        command = _command(first, Store(store))
        found |= {record.cell: _with_seed(command, first.seed, record.seed) for record in (first, *others)}
    return found


def _but_the_seed(record: Record) -> str:
    identity = {key: value for key, value in record.identity.items() if key != "seed"}
    return json.dumps([identity, record.data, record.numerics, record.protocols], sort_keys=True)


def _command(record: Record, store: Store) -> str:
    try:
        return reproduction(record, store).command
    except UserError as error:
        return f"# {error}"


def _with_seed(command: str, old: int, new: int) -> str:
    if command.startswith("#") or old == new:
        return command
    return shlex.join(f"seed={new}" if word == f"seed={old}" else word for word in shlex.split(command))
