"""A workspace (saved view) of Weights & Biases for a sweep, made from code: its panels name what the mirror logs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import trackkeys as keys
from harness.record import Record
from harness.store import Store
from methods.spec import UserError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

COSTS = {"parameters/trainable_method": "trainable parameters of the method", "changed/bytes": "bytes to ship", "seconds": "seconds"}
CURVES = ("loss", "grad_norm", "learning_rate", "tokens_per_second")
COLUMNS = 3
SHOWN_RUNS = 100


@dataclass(frozen=True)
class Contents:
    """What there is to show of a sweep."""

    results: dict[str, str]
    """Key of each protocol's primary metric -> title of its panels."""
    curves: dict[str, list[str]]
    """Training phase -> names of its curves."""


def contents(store: Path, sweep: str) -> Contents:
    """What the finished cells of a sweep have measured; `UserError` where there are none."""
    records = list(_records(store, sweep))
    if not records:
        raise UserError(f"{store} has no finished cells of sweep {sweep}; run `parebench -m +sweeps=<name>` first or give another --store")
    main = [result for record in records for result in record.results if result.variant == keys.MAIN]
    results = {keys.result(r.protocol, r.variant, r.primary): _title(r) for r in main}
    curves: dict[str, list[str]] = {}
    for record in records:
        for phase in record.phases:
            if phase.steps:
                curves.setdefault(phase.name, list(CURVES))
        if record.selection.get("phase") in curves:
            curve, names = f"selection/{record.results[0].primary}", curves[record.selection["phase"]]
            names += [curve] if curve not in names else []
    return Contents(results, curves)


def workspace(shown: Contents, sweep: str, project: str, entity: str) -> "Workspace":
    """The view: quality versus cost, learning curves by method, bars per task, the table of results; of this sweep's runs alone.

    Raises `UserError` where wandb-workspaces is not installed.
    """
    ws, _ = _library()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"parebench {sweep}",
        sections=[
            _section("Quality versus cost", _scatters(shown)),
            _section("Learning curves by method", _lines(shown)),
            _section("Tasks", _bars(shown)),
            _section("Results", [_table()], columns=1),
        ],
        settings=ws.WorkspaceSettings(max_runs=SHOWN_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == sweep, ws.Tags().notin(["interrupted"])), groupby=[ws.Config(keys.METHOD)]
        ),
    )


def as_json(view: "Workspace") -> str:
    """The view as W&B takes it; needs no network."""
    return view._to_model().model_dump_json(by_alias=True, exclude_none=True)


def save(shown: Contents, sweep: str, project: str, entity: str | None) -> str:
    """Create the view online and return its address; raises `UserError` where W&B does not take it."""
    _library()
    import wandb

    try:
        view = workspace(shown, sweep, project, entity or wandb.Api().default_entity)
        view.save()
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"W&B did not take the view ({reason}); type wandb login, or --out <file> to write it to a file") from error
    return view.url


def _records(store: Path, sweep: str) -> Iterator[Record]:
    if not store.is_dir():
        raise UserError(f"there is no store {store}; give the folder of the records: --store <folder>")
    members = Store(store).members(sweep)
    return (record for record in Store(store).records() if record.sweep == sweep or record.cell in members)


def _title(result: Any) -> str:
    return f"{result.protocol} {result.primary} {'↑' if result.higher_is_better else '↓'}"


def _scatters(shown: Contents) -> list[Any]:
    _, wr = _library()
    return [
        wr.ScatterPlot(
            title=f"{title} against {name}",
            x=wr.SummaryMetric(keys.cost(path)),
            y=wr.SummaryMetric(key),
            log_x=path != "seconds",
            regression=False,
        )
        for key, title in shown.results.items()
        for path, name in COSTS.items()
    ]


def _lines(shown: Contents) -> list[Any]:
    _, wr = _library()
    return [
        wr.LinePlot(
            title=f"{name} ({phase})", x=keys.step(phase), y=[keys.curve(phase, name)], title_x=f"optimizer step ({phase})",
            groupby=wr.Config(keys.METHOD), groupby_aggfunc="mean", groupby_rangefunc="minmax", max_runs_to_show=SHOWN_RUNS,
        )
        for phase, names in shown.curves.items()
        for name in names
    ]  # fmt: skip


def _bars(shown: Contents) -> list[Any]:
    _, wr = _library()
    return [
        wr.BarPlot(
            title=title, metrics=[wr.SummaryMetric(key)], groupby=wr.Config(keys.METHOD), groupby_aggfunc="mean", groupby_rangefunc="stddev"
        )
        for key, title in shown.results.items()
    ]


def _table() -> Any:
    _, wr = _library()
    return wr.WeavePanelSummaryTable(table_name=keys.RESULTS)


def _section(name: str, panels: Sequence[Any], columns: int = COLUMNS) -> "Section":
    ws, _ = _library()
    rows = max(1, min(COLUMNS, -(-len(panels) // columns)))
    return ws.Section(name=name, panels=list(panels), is_open=True, layout_settings=ws.SectionLayoutSettings(columns=columns, rows=rows))


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(f"wandb-workspaces is not installed ({error}); type pip install 'parebench[dashboard]'") from error
    return ws, wr
