"""Records in the rows and columns of a paper's layout, published values beside them, and the reason for what is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from analysis.changes import BEFORE
from analysis.layout import Layout
from analysis.layouts import ColumnSpec, PaperLayout, RowSpec
from analysis.load import DONE
from analysis.metrics import LOG_SCALE
from analysis.quoted import Quoted, quoted, same, setting, value
from analysis.tables import Column, Row, Table, table
from harness.registry import files as techniques

MEASURED, PUBLISHED, NOT_RUN = "measured", "published", "not run"
NO_MODEL = "no record"
"""In place of a model where no record has a place in the layout."""


@dataclass(frozen=True)
class Place:
    """One column of the table: of the layout, in one form that records have."""

    index: int
    """Which of the layout's columns."""
    spec: ColumnSpec
    column: Column | None
    """None where no record has it."""
    title: str
    scale: float
    decimals: int


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    model: str
    group: str
    name: str
    kind: str
    row: Row | None = None
    quoted: Quoted | None = None
    why: str = ""


@dataclass(frozen=True)
class Arranged:
    """A layout filled in."""

    layout: PaperLayout
    table: Table
    places: list[Place]
    lines: list[Line]
    notes: list[str]


def arrange(frame: pd.DataFrame, store: Path, layout: PaperLayout) -> Arranged:
    """Fill a layout from a frame of `analysis.load.load`; statistics are those of `analysis.tables.table` over the rows that it shows."""
    main = frame[frame["variant"].isna() | (frame["variant"] == "main")]
    specs = {row["label"]: spec for _, row in main.drop_duplicates("label").iterrows() if (spec := _spec(row, layout))}
    measured = [_wanted(name, metric, layout) for name, metric in zip(main["column"], main["metric"], strict=True)]
    kept = main[main["label"].isin(specs) & pd.Series(measured, main.index, dtype=bool)]
    if layout.models is not None:
        kept = kept[kept["model"].isin(layout.models)]
    made = _table(kept, store, layout)
    places = [place for i, spec in enumerate(layout.columns) for place in _places(i, spec, made, layout)]
    lines = list(_lines(kept, specs, made, layout))
    return Arranged(layout, made, places, lines, [*_notes(lines, places), *_left_out(frame, kept, layout)])


def _table(kept: pd.DataFrame, store: Path, layout: PaperLayout) -> Table:
    if kept[kept["status"] == DONE].empty:
        return Table(layout.title, "", [], [], [])
    means = {column.show: column.mean for column in layout.columns if column.mean}
    return table(kept.reset_index(drop=True), store, Layout(title=layout.title, means=means))


def _wanted(column: object, metric: object, layout: PaperLayout) -> bool:
    """Is it a column of the layout, or a task of one of its means?"""
    if not isinstance(column, str):
        return False
    place, _, form = column.partition("@")
    task = place.rpartition("/")[2]
    return any(
        fnmatchcase(column, spec.protocol) and spec.metric in (None, metric)
        if spec.protocol
        else task in (spec.mean or []) and fnmatchcase(form, spec.form)
        for spec in layout.columns
    )


def _spec(row: pd.Series, layout: PaperLayout) -> RowSpec | None:
    """The first row of the layout that a record belongs to."""
    return next((spec for spec in layout.rows if spec.method and _belongs(row, spec)), None)


def _belongs(row: pd.Series, spec: RowSpec) -> bool:
    keys = {key if "." in key else f"method.{key}": wanted for key, wanted in spec.where.items()}
    return fnmatchcase(str(row["method"]), spec.method or "") and all(key in row and same(row[key], wanted) for key, wanted in keys.items())


def _places(index: int, spec: ColumnSpec, made: Table, layout: PaperLayout) -> list[Place]:
    """The columns of the table that a column of the layout stands for; one without records where there is none."""
    if spec.mean:
        names = {column.name: column.name.partition("@") for column in made.columns}
        own = f"{spec.show}-mean"
        found = [c for c in made.columns if names[c.name][0].rpartition("/")[2] == own and fnmatchcase(names[c.name][2], spec.form)]
    else:
        named = [column for column in made.columns if fnmatchcase(column.name, spec.protocol or "") and not _is_mean(column, layout)]
        found = [column for column in named if spec.metric in (None, column.metric)]
    if not found:
        return [Place(index, spec, None, spec.show, spec.scale or layout.scale, layout.decimals)]
    return [_place(index, spec, column, layout, alone=len(found) == 1) for column in found]


def _is_mean(column: Column, layout: PaperLayout) -> bool:
    return any(spec.mean and column.name.partition("@")[0].rpartition("/")[2] == f"{spec.show}-mean" for spec in layout.columns)


def _place(index: int, spec: ColumnSpec, column: Column, layout: PaperLayout, *, alone: bool) -> Place:
    log = column.metric in LOG_SCALE
    scale = spec.scale if spec.scale is not None else 1.0 if log else layout.scale
    decimals = spec.decimals if spec.decimals is not None else 2 if log else layout.decimals
    title = spec.show if alone else f"{spec.show} ({column.name.partition('@')[2]})"
    return Place(index, spec, column, f"{title} {'↑' if column.higher_is_better else '↓'}", scale, decimals)


def _lines(kept: pd.DataFrame, specs: dict[str, RowSpec], made: Table, layout: PaperLayout) -> Iterator[Line]:
    methods = kept.drop_duplicates("label").set_index("label")["method"].to_dict()
    published = quoted(layout) if layout.published else []
    models = list(dict.fromkeys(row.model for row in made.rows)) or [NO_MODEL]
    for model in sorted(models, key=layout.models.index) if layout.models and made.rows else models:
        rows = [(specs[row.label], row) for row in made.rows if row.model == model]
        yield from _of_model(model, rows, [one for one in published if one.model == model], layout, methods)
    for model in dict.fromkeys(one.model for one in published if one.model not in models):
        yield from _only_published(model, [one for one in published if one.model == model])


def _of_model(
    model: str, rows: list[tuple[RowSpec | None, Row]], published: list[Quoted], layout: PaperLayout, methods: dict[str, str]
) -> Iterator[Line]:
    group = ""
    for spec in layout.rows:
        if spec.group is not None:
            group = spec.group
            continue
        own = [row for owner, row in rows if owner is spec]
        for row in sorted(own, key=lambda row: _family(methods[row.label])) if layout.group_by == "family" else own:
            heading = _family(methods[row.label]) if layout.group_by == "family" else group
            yield Line(model, heading, _name(spec, row, own), MEASURED, row)
        if not own and not spec.pattern:
            yield Line(model, group, _shown(spec), NOT_RUN, why=_why(spec))
        yield from (Line(model, group, _quoted_name(one), PUBLISHED, quoted=one) for one in published if one.spec is spec)


def _only_published(model: str, published: list[Quoted]) -> Iterator[Line]:
    for one in published:
        yield Line(model, "published values alone: no record of this model", _quoted_name(one), PUBLISHED, quoted=one)


def _quoted_name(one: Quoted) -> str:
    return f"{_shown(one.spec)}{f' ({one.settings})' if one.settings else ''}, published"


def _name(spec: RowSpec, row: Row, own: Sequence[Row]) -> str:
    """What the layout calls it; with its settings where several rows are called so."""
    if spec.pattern:
        return row.label
    return _shown(spec) if len(own) == 1 else f"{_shown(spec)} ({row.label.partition(' (')[2].removesuffix(')') or 'as it is'})"


def _shown(spec: RowSpec) -> str:
    settings = ", ".join(f"{key}={wanted}" for key, wanted in spec.where.items())
    return spec.show or f"{spec.method}{f' ({settings})' if settings else ''}"


def _family(method: str) -> str:
    """The folder of a method, that of its last step for a chain."""
    path = techniques().get(method.rpartition("+")[2])
    return path.parent.name if path else "others"


def _why(spec: RowSpec) -> str:
    absent = [step for step in str(spec.method).split("+") if step not in techniques()]
    return f"there is no method {', '.join(absent)} yet" if absent else "no record in this store"


def _notes(lines: Sequence[Line], places: Sequence[Place]) -> Iterator[str]:
    """What each column is, what each name stands for, and why something is missing."""
    yield from (f"{p.title}: {p.column.name}, {p.column.metric}, {p.column.examples} examples" for p in places if p.column)
    if absent := [f"{p.title} ({_asked(p.spec)})" for p in places if p.column is None]:
        yield f"no record was measured on: {', '.join(absent)}"
    if names := dict.fromkeys(f"{line.name} = {line.row.label}" for line in lines if line.row and line.name != line.row.label):
        yield f"rows: {', '.join(names)}"
    for why in dict.fromkeys(line.why for line in lines if line.why):
        yield f"not run, since {why}: {', '.join(dict.fromkeys(line.name for line in lines if line.why == why))}"
    for line in lines:
        if line.row and (blank := [p.title for p in places if p.column and not line.row.cells[p.column.name].attempted]):
            yield f"{line.name}, {line.model}: no record of {', '.join(blank)}"
    for line in lines:
        for index, claim in line.quoted.claims.items() if line.quoted else ():
            title = next(place.spec.show for place in places if place.index == index)
            yield f"{line.name}, {title}: {value(claim)} {claim.unit}: {setting(claim)}"


def _asked(spec: ColumnSpec) -> str:
    pattern = spec.protocol or f"a mean over {', '.join(spec.mean or [])}"
    return f"{pattern}, {spec.metric}" if spec.metric else pattern


def _left_out(frame: pd.DataFrame, kept: pd.DataFrame, layout: PaperLayout) -> Iterator[str]:
    names = sorted(set(frame["label"]) - set(kept["label"]) - set(frame[frame["variant"] == BEFORE]["label"]))
    if names:
        listed = ", ".join(names[:8]) + (", ..." if names[8:] else "")
        yield f"left out, since layout {layout.slug} has no place for them: {listed}"
