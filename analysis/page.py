"""One self-contained HTML file: searchable, sortable tables, quality against cost, every cell, examples, claims, how it was made.

The script builds everything from the JSON that the page carries, by text nodes alone. What is large (records, curves, predictions)
lies in compressed chunks that are opened one at a time. Nothing is fetched, and no other script runs: the content security policy
names the hashes of the page's own script and style.
"""

import base64
import gzip
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import page_data
from analysis.claims import Line
from analysis.curves import POINTS
from analysis.page_claims import claim_lines
from analysis.perexample import Answered, ExampleSet, Reader, answered, with_predictions
from analysis.tables import Column, Table
from analysis.traces import trace

WEB = files("analysis") / "web"
SCRIPTS = [f"{name}.js" for name in ("base", "state", "tips", "grid", "results", "charts", "pareto", "cell", "examples", "claims", "main")]
"""In the order in which they run."""

CHUNK = 40
"""Cells in one compressed chunk: as many as a browser unpacks in a few milliseconds."""
CURVE_POINTS = 1_000_000
"""Points of a page's curves, shared by its cells: a curve has 40 at least and `POINTS` at most."""


@dataclass
class Chunks:
    """Compressed JSON values by number."""

    texts: list[str] = field(default_factory=list)

    def add(self, value: Any) -> int:
        """The number of the chunk that holds `value`; equal values give equal bytes."""
        text = gzip.compress(_json(value).encode(), compresslevel=4, mtime=0)
        self.texts.append(base64.b64encode(text).decode())
        return len(self.texts) - 1


@dataclass(frozen=True)
class Details:
    """What the page can open beside its tables."""

    chunks: Chunks
    cells: dict[str, int]
    """Cell -> its chunk, a mapping of cells to `analysis.traces.trace`."""
    examples: dict[str, Any]
    """Column -> `set` (chunk of its examples) and `parts` (chunk -> the results in it)."""
    sources: dict[str, list[str]]
    store: str
    """The options of a command that name the store."""


@dataclass(frozen=True)
class Made:
    """When and by which command a page was made."""

    when: str
    command: str


def details(frame: pd.DataFrame, store: Path, told: str | None = None, commands: Mapping[str, str] | None = None) -> Details:
    """Records, curves, logs and predictions of the cells of a frame, from the store that they lie in.

    `told`: the options that name the store; `commands`: cell -> how it is made again.
    """
    again = commands or {}
    chunks = Chunks()
    cells = sorted(set(frame["cell"]))
    points = min(POINTS, max(40, CURVE_POINTS // (4 * max(1, len(cells)))))
    where, records = {}, []
    for batch in _batches(cells):
        traces = {cell: trace(store, cell, points) | ({"remake": again[cell]} if cell in again else {}) for cell in batch}
        records += [found["record"] for found in traces.values() if "record" in found]
        where |= dict.fromkeys(batch, chunks.add(traces))
    measured = with_predictions(frame)
    columns = answered(measured, Reader(store, len(measured)))
    examples = {column: _examples(chunks, known, found) for column, known, found in columns}
    return Details(chunks, where, examples, page_data.sources(records), told or f"--store {shlex.quote(str(store))}")


def _examples(chunks: Chunks, known: ExampleSet, found: dict[tuple[str, str], Answered]) -> dict[str, Any]:
    """Chunks of one column: its examples, and the packed results by `<cell> <variant>`."""
    parts = {}
    for batch in _batches(list(found.items())):
        results = {f"{cell} {variant}": _set(vars(one)) for (cell, variant), one in batch}
        parts[chunks.add(results)] = list(results)
    return {"set": chunks.add(_set(vars(known))), "n": len(known.keys), "parts": parts}


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[at : at + CHUNK] for at in range(0, len(items), CHUNK))


def _set(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def page(
    table: Table, frame: pd.DataFrame | None = None, opened: Details | None = None, claims: Sequence[Line] = (), made: Made | None = None
) -> str:
    """The page of a table; equal arguments give equal bytes. Plot and list of cells need `frame`, drill-downs need `opened`."""
    data = page_data.contents(table, frame) | {"claims": claim_lines(claims), "made": _made(table, frame, opened, made)}
    data |= {"details": opened.cells if opened else {}, "examples": opened.examples if opened else {}}
    data |= {"store": opened.store if opened else None}
    style, script = _asset("page.css"), "".join(_asset(name) for name in SCRIPTS)
    parts = {
        "title": escape(table.title), "policy": policy(script, style), "css": style, "js": script, "data": embedded(data),
        "chunks": "\n".join(_chunk(i, text) for i, text in enumerate(opened.chunks.texts if opened else ())),
    }  # fmt: skip
    return "".join(_filled(_asset("page.html"), parts))


def policy(script: str, style: str) -> str:
    """The content security policy: nothing but this script and this style."""
    return f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _filled(template: str, parts: dict[str, str]) -> Iterator[str]:
    for i, piece in enumerate(template.split("@")):
        yield parts[piece] if i % 2 else piece


def _chunk(number: int, text: str) -> str:
    return f'<script type="text/plain" id="chunk-{number}">{text}</script>'


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element: no character of it can end the element or a JavaScript line."""
    text = _json(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _asset(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _made(table: Table, frame: pd.DataFrame | None, opened: Details | None, made: Made | None) -> dict[str, Any]:
    """Versions, the hash of each protocol's rows, those of the methods' sources, when, and by which command."""
    return {
        "when": made.when if made else "", "command": made.command if made else "",
        "versions": table.versions, "rows": [_rows(column) for column in table.columns],
        "sources": opened.sources if opened else {}, "cells": 0 if frame is None else int(frame["cell"].nunique()),
    }  # fmt: skip


def _rows(column: Column) -> list[str]:
    """Name, examples, where they are from, hash."""
    source, dataset, split, revision, digest = (str(column.rows.get(key)) for key in ("source", "dataset", "split", "revision", "sha256"))
    return [column.name, str(column.examples), f"{source} {dataset} {split} ({revision})", digest]
