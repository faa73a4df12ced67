"""`parebench-report`: records in, tables and pages out."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table as RichTable
from rich.text import Text

from analysis import arranged_text, catalogue, claims, compare_command, dashboard, formats, layouts, page_command, papers, reproduce, source
from analysis.answers import Answers, answers
from analysis.arrange import arrange
from analysis.d90 import d90
from analysis.evidence import Evidence
from analysis.export import export_records
from analysis.layout import Layout, layout
from analysis.load import load
from analysis.page import page
from analysis.plots import command as plots
from analysis.tables import Table, table
from analysis.tune import picks, values_told
from analysis.tune import write as write_picks
from harness.store import write_atomically
from methods.spec import UserError

FORMATS = {"md": formats.markdown, "csv": formats.csv_text, "latex": formats.latex, "html": page, "terminal": formats.plain}

LAST = "last"
"""The variant under which the unselected last checkpoint is recorded; tables leave it out unless asked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit code: 0, 1 where a published number is contradicted, 2 after one sentence on a mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    errors = Console(stderr=True, soft_wrap=True)
    handler = RichHandler(console=errors, show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        if argv[:1] == ["params"]:
            return _params(argv[1:])
        options = _parser().parse_args(argv, argparse.Namespace(argv=argv))
        return options.run(options) or 0
    except UserError as error:
        errors.print(Text(f"parebench-report: {error}"))
        return 2


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one sentence like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message}; type {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="parebench-report", description="Tables and pages from the records of a store.")
    commands = parser.add_subparsers(required=True, metavar="command")
    shown = _command(commands, "table", _table, "print the table of a sweep, or of all records")
    shown.add_argument("--format", choices=FORMATS, help="default: terminal, or what the name of --out ends with")
    shown.add_argument("--out", type=Path, help="write to this file")
    shown.add_argument("--paper", metavar="LAYOUT", help=f"in the rows and columns of a paper: {', '.join(layouts.slugs())}")
    page_command.options(_command(commands, "page", _page, "write one self-contained HTML file"))
    viewed = _command(commands, "dashboard", _dashboard, "create a saved view of W&B for a sweep's runs", rows=False, mirrored=False)
    viewed.add_argument("--wandb", action="store_true", required=True, help="where the view is made (the offline one is: page)")
    viewed.add_argument("--project", default="parebench", help="as tracker.project (default: parebench)")
    viewed.add_argument("--entity", help="as tracker.entity (default: that of your key)")
    viewed.add_argument("--out", type=Path, help="write the view's JSON to this file instead of creating it; needs no network")
    compare_command.add(commands)
    _command(commands, "answers", _answers, "per set of questions: accuracy with its interval, majority class, invalid answers")
    _command(commands, "d90", _d90, "intrinsic dimension: the smallest subspace that reaches 90 %% of full fine-tuning")
    exported = _command(commands, "export-records", _export, "copy records and predictions for committing", rows=False)
    exported.add_argument("--out", type=Path, required=True, help="an empty or new folder, such as sweeps/results/<sweep>")
    tuned = _command(commands, "tune", _tune, "the best recipe of each method in a search sweep, by the selection rows")
    tuned.add_argument("--budget", help="with --write: the budget whose cells are to use it")
    tuned.add_argument("--write", type=Path, help="add the picks to the recipes in this folder, such as conf/method")
    reproduce.add(commands)
    plots.add(commands)
    catalogue.add(commands)
    claimed = commands.add_parser("claims", help="published numbers beside ours, counted on architectures or looked up in records")
    claimed.add_argument("slugs", nargs="*", metavar="method", help="default: every technique of analysis/papers")
    claimed.add_argument("--kind", choices=("all", *papers.KINDS), default="params", help="default: params")
    claimed.add_argument("--store", type=Path, nargs="+", help="folders of records: look up scores and comparisons there")
    claimed.add_argument("--sweep", help="only records of this sweep")
    claimed.set_defaults(run=_claims)
    commands.add_parser("params", help="parameter counts without weights: params method=<name> model=<name>", add_help=False)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, sweep: str = "sweep", **kinds: bool
) -> argparse.ArgumentParser:
    """A subcommand of a sweep; `kinds`: see `source.add`."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(sweep, **({} if sweep.startswith("-") else {"nargs": "?"}), help="name of a sweep; default: all records")
    command.add_argument("--variants", action="store_true", help="show every variant, the last checkpoint beside the selected one too")
    source.add(command, run, **kinds)
    return command


def _build(options: argparse.Namespace) -> Table:
    frame, shape = _framed(options)
    return table(frame, options.store, shape, before=options.variants)


def _framed(options: argparse.Namespace) -> tuple[pd.DataFrame, Layout]:
    """The records that were asked for, and how their table is laid out."""
    frame = source.frame(options)
    if not options.variants:
        frame = frame[frame["variant"] != LAST]
    sweeps = set(frame["sweep"].dropna())
    name = options.sweep or (sweeps.pop() if len(sweeps) == 1 and frame["sweep"].notna().all() else None)
    return frame, layout(name)


def _table(options: argparse.Namespace) -> None:
    """In a paper's layout where one is named, here or in the sweep's own table block."""
    frame, plan = _framed(options)
    kind, paper = options.format or _format_of(options.out), options.paper or plan.layout
    made: Any = (
        arrange(frame, options.store, layouts.paper_layout(paper)) if paper else table(frame, options.store, plan, before=options.variants)
    )
    text = (arranged_text.FORMATS if paper else FORMATS)[kind]
    if options.out:
        _write(options.out, text(made))
    elif kind == "terminal":
        shown = (arranged_text if paper else formats).terminal(made)
        Console(width=max(Console().width, formats.natural_width(shown))).print(shown)
    else:
        sys.stdout.write(text(made))


def _format_of(out: Path | None) -> str:
    endings = {".md": "md", ".csv": "csv", ".tex": "latex", ".html": "html"}
    return endings.get(out.suffix, "terminal") if out else "terminal"


def _answers(options: argparse.Namespace) -> None:
    frame = source.frame(options)
    found = answers(frame if options.variants else frame[frame["variant"] != LAST])
    shown = RichTable("questions", "form", "row", "n", "majority", "accuracy", "95 %", "invalid", "majority class", box=SIMPLE)
    for one in found:
        shown.add_row(*_answer_cells(one))
    Console(width=max(Console().width, 160)).print(shown)


def _answer_cells(one: Answers) -> list[str]:
    invalid = formats.DASH if one.invalid is None else f"{one.invalid:.3f}"
    interval = f"[{one.low:.3f}, {one.high:.3f}]"
    return [one.tasks, one.form, one.label, str(one.n), f"{one.majority:.3f}", f"{one.accuracy:.3f}", interval, invalid, one.verdict]


def _d90(options: argparse.Namespace) -> None:
    frame = source.frame(options)
    found = d90(frame[frame["variant"] != LAST])
    if found.empty:
        raise UserError("d90 needs cells of intrinsic_dim and of full_ft on one model and task; run `parebench -m +sweeps=intrinsic_dim`")
    shown = RichTable(*found.columns, box=SIMPLE)
    for row in found.itertuples(index=False):
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    Console().print(shown)


def _page(options: argparse.Namespace) -> None:
    frame, shape = _framed(options)
    built = table(frame, options.store, shape, before=options.variants)
    text = page_command.report(built, frame, options.store, options.sweep, shape, _counter() if options.counts else None, options.argv)
    _write(options.out or source.home(options) / f"{options.sweep or 'report'}.html", text)


def _dashboard(options: argparse.Namespace) -> None:
    if not options.sweep:
        raise UserError("dashboard needs the name of a sweep; type parebench-report dashboard --wandb <sweep>")
    shown = dashboard.contents(options.store, options.sweep)
    if options.out:
        view = dashboard.workspace(shown, options.sweep, options.project, options.entity or "")
        _write(options.out, dashboard.as_json(view) + "\n")
    else:
        address = dashboard.save(shown, options.sweep, options.project, options.entity)
        Console(soft_wrap=True).print(Text(f"created {address}"))


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written ({error.strerror}); give a file in a folder that is yours") from error
    Console(soft_wrap=True).print(Text(f"wrote {path}"))


def _export(options: argparse.Namespace) -> None:
    cells = export_records(options.store, options.sweep, options.out)
    Console(soft_wrap=True).print(Text(f"copied {cells} cells to {options.out}"))


def _tune(options: argparse.Namespace) -> None:
    if not options.sweep or bool(options.write) != bool(options.budget):
        raise UserError("give the name of a search sweep, and --budget together with --write; type parebench-report tune --help")
    found = picks(source.frame(options))
    shown = RichTable(box=SIMPLE, pad_edge=False)
    for title in ("method", "model", "chosen", "trials (with the metric on the selection rows)"):
        shown.add_column(title)
    for pick in found:
        chosen = "none: all trials are equal" if pick.undecided else f"{values_told(pick.chosen)}{' (edge)' if pick.on_edge else ''}"
        shown.add_row(pick.method, pick.model, chosen, pick.told)
    Console().print(shown)
    for path in write_picks(found, options.sweep, options.budget, options.write) if options.write else ():
        Console(soft_wrap=True).print(Text(f"wrote {path}"))


def _claims(options: argparse.Namespace) -> int:
    """Published numbers beside ours; 1 where one disagrees and nothing explains it."""
    found = [papers.published(slug) for slug in options.slugs or papers.slugs()]
    kinds = papers.KINDS if options.kind == "all" else (options.kind,)
    lines = claims.judged(found, kinds, _counter(), _evidence(options))
    shown = claims.report(lines)
    Console(width=max(Console().width, 170), soft_wrap=True).print(shown)
    return int(claims.failed(lines))


def _evidence(options: argparse.Namespace) -> list[Evidence] | None:
    if options.sweep and not options.store:
        raise UserError("--sweep names a sweep of a store; give --store <folder> too")
    return [Evidence(load(store, options.sweep), store, options.sweep) for store in options.store] if options.store else None


def _counter() -> claims.Counts:
    """Counts on the meta device, with torch imported at the first one; what Hydra refuses is a `UserError`."""

    @cache
    def counter() -> claims.Counts:
        from harness.params import Counter

        return Counter()

    def counts(overrides: Sequence[str]) -> dict[str, Any]:
        from harness.cli import MISTAKES, sentence

        try:
            return counter()(overrides)
        except MISTAKES as error:
            raise UserError(sentence(error, list(overrides))) from error

    return counts


def _params(argv: list[str]) -> int:
    """`harness.params`, imported only here: the one way from analysis to models (and to torch)."""
    from harness.cli import MISTAKES, sentence
    from harness.params import main as params

    try:
        return params(argv)
    except MISTAKES as error:
        raise UserError(sentence(error, argv)) from error


if __name__ == "__main__":
    sys.exit(main())
