"""Which records were made by other code than what is installed, judged by what they keep of it: torch-free, and nothing is run.

A record keeps the hashes of its method's sources, the version of each protocol and of the machine's numerics. `parebench-sweep status`
sees more: whether a cell that it was made from was made anew since.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from analysis.rows import DONE
from harness import sourcetexts
from harness.record import NUMERICS
from harness.registry import CHAIN
from harness.stale import today_of
from methods.spec import UserError


def mark(rows: Iterable[dict[str, Any]]) -> None:
    """Give every row (`analysis.rows`) of a store `stale`: why its record is not about today's code, empty where it is.

    Records from before sources were kept, and failures, cannot be judged and count as fresh.
    """
    rows = list(rows)
    for row in rows:
        row["stale"] = "; ".join(_reasons(row)) if row["status"] == DONE else ""
    stale = {row["cell"] for row in rows if row["stale"]}
    for row in rows:
        if not row["stale"]:
            sources = (f"{name} ({made['cell']}) is stale" for name, made in (row.get("inherited") or {}).items() if made["cell"] in stale)
            row["stale"] = "; ".join(sources)


def _reasons(row: Mapping[str, Any]) -> Iterable[str]:
    sources = row["sources"]
    yield from _changed(row["method"], tuple(sources.items())) if sources else ()
    today = today_of(row["measured_by"])
    if today not in (None, row["version"]):
        yield f"{row['protocol']} is of version {row['version']}, now {today}"
    numerics = row["numerics"].get("harness", NUMERICS)
    if numerics != NUMERICS:
        yield f"the harness computes with numerics {NUMERICS}, it was made with {numerics}"


@cache
def _changed(method: str, sources: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """How the sources of a method differ from those that made a record; `method` as in its row, a chain by its steps."""
    then, names = dict(sources), method.split("+")
    half = {"name": CHAIN, "steps": {name: {"name": name} for name in names}} if f"methods/{CHAIN}.py" in then else {"name": method}
    try:
        now = sourcetexts.of_method(half)
    except UserError:
        return (f"method {method} is gone",)
    words = {(True, True): "has changed", (True, False): "has gone from its imports", (False, True): "has joined its imports"}
    return tuple(f"{name} {words[name in then, name in now]}" for name in sorted({*then, *now}) if then.get(name) != now.get(name))
