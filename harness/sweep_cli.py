"""The command `parebench-sweep`: what became of a sweep, and what to do about it. Torch-free."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from harness import clean, lease, manifest, retry, status
from harness.config import TrackerConfig
from harness.human import columns, size
from harness.nearmiss import unknown
from harness.status import UNFINISHED, Status
from harness.store import Store
from methods.spec import UserError

BAD_INPUT, INTERRUPTED = 2, 130
HELP = """\
parebench-sweep: what became of a sweep, and what to do about it

  status [sweep]                 each cell: done, running, failed and how; no name: all sweeps of the store
                                 --failed: only those; --json: for programs
  retry <sweep> [what ...]       run failed cells again: oom, diverged, timeout, error, disk_full, interrupted,
                                 or beginnings of cell ids; nothing named: all of them. Other cells stay as they are
  logs <cell>                    the log of a cell (the beginning of its id is enough)
                                 -n <lines>: the last ones, default 40, 0 = all; --follow: as it grows
  clean <sweep> | --all          show what is not needed any more, ask, remove it; never a record
                                 --models: exported models too, except those that other cells need; --yes: do not ask
  plan <arguments of parebench>  compose and check a grid without starting it: cells, skips with reasons,
                                 time and disk forecast. parebench-sweep plan +sweeps=quickstart

  sync <sweep>                   send to Weights & Biases what it does not have of it, after an outage for instance
                                 --offline: to files; --project, --entity, --folder, --timeout: as of the tracker

All but plan take --store <folder> (default: runs); plan takes run.store=<folder>.
Exit codes: 0 done, 1 a cell failed, 2 bad input, 130 interrupted.
"""


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """`parebench-sweep` with these arguments; its exit code."""
    if not argv or {"--help", "-h"} & set(argv):
        sys.stdout.write(HELP)
        return 0
    try:
        if argv[0] == "plan":
            return _plan(argv[1:])
        options = _parser().parse_args(argv)
        return options.run(options, Store(options.store))
    except UserError as error:
        sys.stderr.write(f"parebench-sweep: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        sys.stdout = None
        return 0


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one sentence like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{message}; type parebench-sweep --help")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="parebench-sweep", add_help=False)
    commands = parser.add_subparsers(required=True, metavar="command")
    shown = _command(commands, "status", _status)
    shown.add_argument("sweep", nargs="?")
    shown.add_argument("--failed", action="store_true")
    shown.add_argument("--json", action="store_true")
    again = _command(commands, "retry", _retry)
    again.add_argument("sweep")
    again.add_argument("what", nargs="*")
    log = _command(commands, "logs", _logs)
    log.add_argument("cell")
    log.add_argument("-n", type=int, default=40, dest="lines")
    log.add_argument("--follow", "-f", action="store_true")
    cleaned = _command(commands, "clean", _clean)
    cleaned.add_argument("sweep", nargs="?")
    for flag in ("--all", "--models", "--yes"):
        cleaned.add_argument(flag, action="store_true")
    sent = _command(commands, "sync", _sync)
    sent.add_argument("sweep")
    sent.add_argument("--offline", action="store_true")
    sent.add_argument("--project", default="parebench")
    sent.add_argument("--entity")
    sent.add_argument("--folder", type=Path)
    sent.add_argument("--timeout", type=float, default=30.0)
    return parser


def _command(commands: Any, name: str, run: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(name, add_help=False)
    command.add_argument("--store", type=Path, default=Path("runs"))
    command.set_defaults(run=run)
    return command


def _status(options: argparse.Namespace, store: Store) -> int:
    if options.sweep is None and not options.failed and manifest.names(store.root):
        return _overview(store, options.json)
    cells = status.sweep(store, options.sweep) if options.sweep else status.all_cells(store)
    shown = [cell for cell in cells if not options.failed or cell.state in UNFINISHED]
    if options.json:
        sys.stdout.write(json.dumps({"cells": [cell.to_json() for cell in shown], "totals": status.totals(cells)}) + "\n")
        return 0
    if shown:
        sys.stdout.write(columns([("cell", "label", "values", "state", "seconds", ""), *map(_row, shown)]))
    sys.stdout.write(f"{len(cells)} cells: {_sums(status.totals(cells))}\n")
    return 0


def _overview(store: Store, as_json: bool) -> int:
    """All sweeps with their counts, and the cells that belong to none."""
    sweeps = {name: status.sweep(store, name) for name in manifest.names(store.root)}
    named = {cell.cell for cells in sweeps.values() for cell in cells}
    others = [status.state(store, cell) for cell in status.folders(store) if cell not in named]
    sums = {name: status.totals(cells) for name, cells in sweeps.items()} | ({"(no sweep)": status.totals(others)} if others else {})
    if as_json:
        sys.stdout.write(json.dumps({"sweeps": sums}) + "\n")
    else:
        rows = [(name, str(sum(count.values())), _sums(count)) for name, count in sums.items()]
        sys.stdout.write(columns([("sweep", "cells", ""), *rows]))
    return 0


def _row(cell: Status) -> tuple[str, ...]:
    seconds = "" if cell.seconds is None else f"{cell.seconds:.0f}"
    return cell.cell, cell.label, cell.values, cell.state, seconds, cell.detail


def _sums(count: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in count.items()) or "none"


def _retry(options: argparse.Namespace, store: Store) -> int:
    from harness import cli

    cells = retry.chosen(status.sweep(store, options.sweep), options.what)
    if not cells:
        sys.stdout.write(f"{options.sweep} has no cell that is {' or '.join(options.what or retry.CLASSES)}\n")
        return 0
    return retry.launch(retry.commands(store, options.sweep, cells), cli.run)


def _plan(argv: Sequence[str]) -> int:
    from harness import cli

    return cli.run(["-m", *(argument for argument in argv if argument not in ("-m", "--multirun")), "hydra.sweeper.dry=true"])


def _logs(options: argparse.Namespace, store: Store) -> int:
    if options.lines < 0:
        raise UserError(f"-n {options.lines} is not allowed; give a number of lines, 0 for all")
    path = store.folder(_cell(store, options.cell)) / "log.txt"
    if not path.is_file() and not (options.follow and lease.holder(path.parent)):
        raise UserError(f"cell {path.parent.name} has no log yet; parebench-sweep status says how it stands")
    text = path.read_text(errors="replace") if path.is_file() else ""
    sys.stdout.write("".join(text.splitlines(keepends=True)[-options.lines :]))
    if options.follow:
        for more in _growth(path, len(text.encode(errors="replace"))):
            sys.stdout.write(more)
            sys.stdout.flush()
    return 0


def _cell(store: Store, prefix: str) -> str:
    found = [name for name in (status.folders(store) if store.root.is_dir() else ()) if name.startswith(prefix)]
    if not found:
        raise UserError(f"no cell of the store {store.root} begins with {prefix}; type parebench-sweep status for their ids")
    if len(found) > 1 and prefix not in found:
        more = ", ..." if len(found) > 10 else ""
        raise UserError(f"{prefix} begins the ids of {', '.join(found[:10])}{more}; give more of it")
    return prefix if prefix in found else found[0]


def _growth(path: Path, start: int) -> Iterator[str]:
    """What is appended to a log until nobody runs its cell."""
    while True:
        running = lease.holder(path.parent) is not None
        if path.is_file() and path.stat().st_size > start:
            with path.open("rb") as file:
                file.seek(start)
                new = file.read()
            start += len(new)
            yield new.decode(errors="replace")
        if not running:
            return
        time.sleep(0.5)


def _clean(options: argparse.Namespace, store: Store) -> int:
    if bool(options.sweep) == options.all:
        raise UserError("clean needs the name of a sweep, or --all for the whole store, and not both")
    if not store.root.is_dir():
        raise UserError(f"there is no store {store.root}; give the folder of the records: --store <folder>")
    asked = None if options.all else [cell["cell"] for cell in manifest.distinct(manifest.commands(store.root, options.sweep))]
    found = clean.removals(store, asked, options.models)
    if not found:
        sys.stdout.write("nothing to remove\n")
        return 0
    rows = [(kind, str(count), size(total)) for kind, (count, total) in clean.by_kind(found).items()]
    total = sum(one.bytes for one in found)
    sys.stdout.write(columns([("what", "number", "size"), *rows]))
    if not options.yes and not _agreed(f"remove {size(total)}? [y/N] "):
        sys.stdout.write("nothing was removed\n")
        return 0
    sys.stdout.write(f"removed {size(clean.remove(store, found))}\n")
    return 0


def _sync(options: argparse.Namespace, store: Store) -> int:
    from harness import sync

    if options.sweep not in manifest.names(store.root):
        raise UserError(unknown("sweep", options.sweep, manifest.names(store.root)))
    folder = str(options.folder or store.root / ".wandb")
    tracker = TrackerConfig("offline" if options.offline else "online", options.project, options.entity, folder, options.timeout)
    report = sync.sync(store.root, options.sweep, tracker)
    sys.stdout.write(f"{report.sentence()}\n")
    return int(report.unsent > 0)


def _agreed(question: str) -> bool:
    sys.stdout.write(question)
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


if __name__ == "__main__":
    main()
