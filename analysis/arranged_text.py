"""A filled layout as a sheet of text and as CSV."""

import math
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Group

from analysis import render
from analysis.arrange import NOT_RUN, PUBLISHED, Arranged, Line, Place
from analysis.formats import DETECTABLE, LEGEND, TIED, count, csv_lines, ranked
from analysis.layouts import PaperLayout
from analysis.metrics import LOG_SCALE
from analysis.quoted import Quoted, setting, value
from analysis.render import TIMES, Entry, Grid, Sheet
from analysis.sides import DASH, SIDES
from analysis.tables import Across, Cell

HOW = (
    "every number without a mark of its own is measured by this project; lines called published repeat what a paper prints, see below",
    "± standard deviation over the seeds (their number; k/n: only k of n finished, not ranked; det.: no seed can change it)",
    f"bold: best of its model, underlined: second; {TIED}: cannot be told from the best (paired over seeds and examples, Holm at 5 %)",
)


def sheet(arranged: Arranged) -> Sheet:
    """The table as text: a grid for each model, and its ranking across tasks."""
    names = {(line.model, line.row.label): line.name for line in arranged.lines if line.row}
    grids = []
    for model in dict.fromkeys(line.model for line in arranged.lines):
        grids.append(_grid(model, [line for line in arranged.lines if line.model == model], arranged))
        grids += [ranked(_renamed(one, names)) for one in arranged.table.rankings if one.model == model]
    legend = [*HOW, LEGEND[2], *([LEGEND[-1]] if {"trials", "origin"} & set(arranged.layout.sides) else [])]
    return Sheet(arranged.layout.title, "", grids, [*legend, *arranged.notes, *arranged.table.footnotes])


def _renamed(across: Across, names: dict[tuple[str, str], str]) -> Across:
    found = across.ranking

    def name(label: str) -> str:
        return names.get((across.model, label), label)

    standings = tuple(replace(one, label=name(one.label)) for one in found.standings)
    return replace(across, ranking=replace(found, standings=standings, groups=tuple(tuple(map(name, group)) for group in found.groups)))


def _grid(model: str, lines: list[Line], arranged: Arranged) -> Grid:
    """The lines of one model; where none is measured, only the columns that have a published value."""
    measured = any(line.kind != PUBLISHED for line in lines)
    quoted = {index for line in lines if line.quoted for index in line.quoted.claims}
    places = arranged.places if measured else _first_forms(place for place in arranged.places if place.index in quoted)
    names = arranged.layout.sides if measured else []
    shown: list[list[Entry]] = []
    group = ""
    for line in lines:
        if line.group != group and line.group:
            shown.append([Entry(line.group)])
        group = line.group
        shown.append([Entry(line.name), *_entries(line, places, arranged.layout), *_sides(line, names)])
    if any(line.row for line in lines):
        shown.append([Entry(DETECTABLE), *(_detectable(place, model) for place in places), *[Entry("")] * len(names)])
    titles = ["method", *(place.title if measured else place.spec.show for place in places), *(SIDES[name].title for name in names)]
    return Grid(titles, shown, 1, model)


def _first_forms(places: Iterable[Place]) -> list[Place]:
    """One place for each column of the layout: a paper has one form."""
    return list({place.index: place for place in reversed(list(places))}.values())[::-1]


def _entries(line: Line, places: list[Place], layout: PaperLayout) -> list[Entry]:
    if line.kind == NOT_RUN:
        return [Entry(NOT_RUN), *[Entry(DASH)] * (len(places) - 1)]
    if line.quoted:
        firsts = _first_forms(places)
        return [_quoted_entry(line.quoted, place) if place in firsts else Entry(DASH) for place in places]
    return [_entry(line.row.cells[place.column.name], place, layout) if place.column else Entry(DASH) for place in places]


def _quoted_entry(one: Quoted, place: Place) -> Entry:
    return Entry(value(one.claims[place.index])) if place.index in one.claims else Entry(DASH)


def _entry(cell: Cell, place: Place, layout: PaperLayout) -> Entry:
    if not cell.values:
        return Entry(f"0/{cell.attempted}" if cell.attempted else DASH)
    number = f"{place.scale * cell.center:.{place.decimals}f}"
    spread = f"± {place.scale * cell.std:.{place.decimals}f} " if cell.std is not None else ""
    small = f"{spread}({count(cell)})" if layout.spread or not cell.complete else ""
    return Entry(number, cell.best, cell.tied, f"{small} leaky".strip() if cell.leaky else small, cell.second)


def _sides(line: Line, names: list[str]) -> list[Entry]:
    return [Entry(SIDES[name].text(line.row) if line.row else DASH) for name in names]


def _detectable(place: Place, model: str) -> Entry:
    found = place.column.detectable.get(model) if place.column else None
    if found is None or place.column is None:
        return Entry(DASH)
    if place.column.metric in LOG_SCALE:
        return Entry(f"{TIMES}{math.exp(found):.{place.decimals}f}")
    return Entry(f"{place.scale * found:.{place.decimals}f}")


CSV_TITLES = (
    "layout", "model", "group", "row", "kind", "method", "column", "protocol", "metric", "value", "std", "seeds", "attempted",
    "deterministic", "best", "second", "tied", "leaky", "why",
)  # fmt: skip


def csv_text(arranged: Arranged) -> str:
    """One line per row and column, numbers in full and unscaled; published ones as printed, with `kind` and their setting."""
    return csv_lines([CSV_TITLES, *(_csv(line, place, arranged) for line in arranged.lines for place in arranged.places)])


def _csv(line: Line, place: Place, arranged: Arranged) -> list[object]:
    head = [arranged.layout.slug, line.model, line.group, line.name, line.kind, line.row.label if line.row else None, place.title]
    blank = [None] * 8
    if line.quoted:
        claim = line.quoted.claims.get(place.index)
        return [*head, *((None, claim.unit, claim.value, *blank, setting(claim)) if claim else (None, None, None, *blank, "not published"))]
    if line.row is None or place.column is None:
        return [*head, None, None, None, *blank, line.why or "no record"]
    cell, column = line.row.cells[place.column.name], place.column
    numbers = [cell.std, len(cell.values), cell.attempted, *map(int, (cell.deterministic, cell.best, cell.second, cell.tied, cell.leaky))]
    return [*head, column.name, column.metric, cell.center if cell.values else None, *numbers, cell.missing]


def markdown(arranged: Arranged) -> str:
    """GitHub-flavoured markdown."""
    return render.markdown(sheet(arranged))


def latex(arranged: Arranged) -> str:
    """`tabular` environments with booktabs; needs `\\usepackage{booktabs}`."""
    return render.latex(sheet(arranged))


def html(arranged: Arranged) -> str:
    """One plain page without scripts."""
    return render.html(sheet(arranged))


def terminal(arranged: Arranged) -> Group:
    """What rich prints."""
    return render.terminal(sheet(arranged))


def plain(arranged: Arranged) -> str:
    """The terminal form as text, for a file."""
    return render.plain(sheet(arranged))


FORMATS = {"md": markdown, "csv": csv_text, "latex": latex, "html": html, "terminal": plain}
