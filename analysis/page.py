"""One self-contained HTML file: searchable, sortable tables, quality against cost, notes, how it was made.

The tables are plain HTML, so they can be read without scripts; the script sorts, filters and draws. Nothing is fetched: the
page's content security policy forbids it.
"""

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from analysis.formats import LEGEND, TIED, Entry, entry, grid, header, sentences, side_numbers
from analysis.tables import Block, Column, Costs, Row, Table

COSTS = {"trainable": "trainable parameters", "bytes_shipped": "bytes shipped", "bytes": "bytes exported", "seconds": "seconds per cell"}


def page(table: Table) -> str:
    """The page of a table; the same table gives the same bytes."""
    parts = {
        "title": escape(table.title),
        "heading": f'<p class="heading" role="note">{escape(table.heading)}</p>' if table.heading else "",
        "tables": "\n".join(_block(block) for block in table.blocks()),
        "legend": _items(LEGEND),
        "comparisons": _section("Paired differences (95 % interval)", "compared", sentences(table)),
        "notes": _section("Notes", "notes", table.footnotes),
        "made": _made(table),
        "data": embedded({"groups": _groups(table), "costs": [{"key": key, "title": title} for key, title in COSTS.items()]}),
        "css": _asset("page.css"),
        "js": _asset("page.js"),
    }
    pieces = _asset("page.html").split("@")
    return "".join(parts.get(piece, piece) if i % 2 else piece for i, piece in enumerate(pieces))


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element: no character of it can end the element or a JavaScript line."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (files("analysis") / name).read_text(encoding="utf-8")


def _block(block: Block) -> str:
    titles = enumerate(_order(header(block)))
    head = "".join(f'<th scope="col"{_text(i)}><button type="button">{escape(title)}</button></th>' for i, title in titles)
    lines = iter(grid(block))
    body, foot = [], []
    for model in block.models:
        body += [_row(row, next(lines), block.columns) for row in block.rows if row.model == model]
        foot.append(_foot(next(lines)))
    caption = f"results of {', '.join(block.models)}"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody><tfoot>{''.join(foot)}</tfoot></table></div>"
    )


def _order(cells: list) -> list:
    """The method first (it stays in view when a phone scrolls), then the model."""
    return [cells[1], cells[0], *cells[2:]]


def _text(index: int) -> str:
    return ' class="text name"' if index == 0 else ' class="text"' if index == 1 else ""


def _row(row: Row, line: list[Entry], columns: list[Column]) -> str:
    cells = [row.cells[c.name] for c in columns]
    keys = [cell.center if cell.values else None for cell in cells] + side_numbers(row)
    name, model, *cells = _order(line)
    numbers = "".join(f'<td data-sort="{"" if key is None else key}">{_shown(cell)}</td>' for cell, key in zip(cells, keys, strict=True))
    found = escape(f"{row.label} {row.model}".lower())
    names = f'<th scope="row" class="text name">{_shown(name)}</th><td class="text">{_shown(model)}</td>'
    return f'<tr data-search="{found}">{names}{numbers}</tr>'


def _mean(costs: Costs, name: str) -> float | None:
    span = getattr(costs, name)
    return span.mean if span else None


def _foot(line: list[Entry]) -> str:
    name, model, *cells = _order(line)
    numbers = "".join(f"<td>{escape(cell.text)}</td>" for cell in cells)
    return f'<tr><th scope="row" class="text name">{escape(name.text)}</th><td class="text">{escape(model.text)}</td>{numbers}</tr>'


def _shown(entry: Entry) -> str:
    text = escape(entry.text) + (f'<abbr title="cannot be told from the best">{TIED}</abbr>' if entry.tied else "")
    return f'<span class="best">{text}</span>' if entry.bold else text


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _section(title: str, kind: str, texts: list[str]) -> str:
    return f'<section><h2>{escape(title)}</h2><ul class="{kind}">{_items(texts)}</ul></section>' if texts else ""


def _made(table: Table) -> str:
    """Versions, and the hash of each protocol's rows."""
    columns = "".join(f"<li>{_rows(column)}</li>" for column in table.columns)
    return f"<p>Made from local records by <code>parebench-report</code>. {escape('; '.join(table.versions))}.</p><ul>{columns}</ul>"


def _rows(column: Column) -> str:
    source, dataset, split, revision, sha256 = (
        escape(str(column.rows.get(key))) for key in ("source", "dataset", "split", "revision", "sha256")
    )
    where = f"{source} {dataset} {split} ({revision})"
    return f"{escape(column.name)}: {column.examples} examples, {where}, <code>sha256 {sha256}</code>"


def _groups(table: Table) -> list[dict[str, Any]]:
    """One scatter per model and column."""
    groups = []
    for block in table.blocks():
        for column in block.columns:
            for model in block.models:
                points = [_point(row, column) for row in block.rows if row.model == model and row.cells[column.name].values]
                if points:
                    groups.append({"title": f"{column.name} ({model})", "metric": column.metric, "points": points})
    return groups


def _point(row: Row, column: Column) -> dict[str, Any]:
    cell = row.cells[column.name]
    costs = {key: _mean(cell.costs, key) for key in COSTS}
    text = entry(cell, column.decimals).text
    return {"label": row.label, "model": row.model, "mean": cell.center, "std": cell.std or 0, "text": text, **costs}
