"""`parebench-report reproduce <cell>`: the command line, versions, sources and data that made a record, and what differs here."""

import argparse
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis import source
from analysis.changes import BEFORE
from harness import sourcetexts
from harness.nearmiss import unknown
from harness.record import NUMERICS, Record
from harness.registry import title
from harness.store import Store
from methods.spec import UserError

SHORTEST = 4
"""Characters of a cell id that are enough, where only one cell begins so."""


@dataclass(frozen=True)
class Reproduction:
    """What it takes to make a record again."""

    heading: str
    command: str
    """For a shell; `<folder>` stands for what only the person knows."""
    requirements: tuple[str, ...]
    """Lines for pip, and the version of Python as a comment."""
    sources: tuple[str, ...]
    data: tuple[str, ...]
    differs: tuple[str, ...]
    """What is not the same on this machine, each a sentence."""

    def text(self) -> str:
        """For a terminal or a file."""
        here = self.differs or ("nothing: versions, sources and configuration are those of the record",)
        parts = {
            "versions (requirements.txt)": self.requirements, "sources": self.sources, "data and weights": self.data,
            "different here": here,
        }  # fmt: skip
        blocks = [f"{self.heading}\n\n{self.command}"]
        blocks += ["\n".join([f"{name}:", *(f"  {line}" for line in lines)]) for name, lines in parts.items() if lines]
        return "\n\n".join(blocks)


def add(commands: Any) -> None:
    """Declare the subcommand."""
    text = "the command line, versions, sources and data that make a cell again"
    command = commands.add_parser("reproduce", help=text, description=text)
    command.add_argument("cell", help="its id, or the beginning of it")
    command.set_defaults(sweep=None)
    source.add(command, _run, rows=False)


def _run(options: argparse.Namespace) -> None:
    record = found(Store(options.store), options.cell)
    Console(soft_wrap=True).print(Text(reproduction(record, Store(options.store)).text()))


def found(store: Store, prefix: str) -> Record:
    """The record of the one cell whose id begins so; `UserError` where there is none, several, or it is damaged."""
    cells = sorted(path.parent.name for path in store.root.glob("*/record.json"))
    matching = [cell for cell in cells if cell.startswith(prefix)]
    if prefix in cells:
        matching = [prefix]
    if not matching:
        raise UserError(
            unknown("cell", prefix, cells, sign=" ") if cells else f"there are no records in {store.root}; give --store <folder>"
        )
    if len(matching) > 1 or len(prefix) < min(SHORTEST, len(matching[0])):
        raise UserError(f"cell {prefix} may be {', '.join(matching[:10])}{', ...' if len(matching) > 10 else ''}; give more of the id")
    try:
        return store.record(matching[0])
    except ValueError as error:
        raise UserError(str(error)) from error


def reproduction(record: Record, store: Store) -> Reproduction:
    """What made a record; `UserError` where today's configuration cannot say it any more."""
    from harness.cli import MISTAKES, sentence
    from harness.commandline import command_line

    half = record.identity
    try:
        line = command_line(half, record.seed)
    except MISTAKES as error:
        old = f"cell {record.cell} cannot be said with today's configuration"
        raise UserError(f"{old} ({sentence(error)}); check out the sources that made it: {_hashes(record)}") from error
    seed = "" if record.deterministic else f" seed {record.seed}"
    return Reproduction(
        f"{title(half['method'])} {half['model']['name']} {half['task']['name']}{seed}: cell {record.cell}, sweep {record.sweep or 'none'}",
        line.text(*_beside(record)), tuple(_requirements(record.numerics)), tuple(_sources(record, store)), tuple(_data(record)),
        (*_other_cell(line, record), *_other_code(record), *_other_versions(record.numerics)),
    )  # fmt: skip


def _beside(record: Record) -> list[str]:
    """Overrides beside the identity: data from a folder, protocols, threads, processes."""
    from harness.commandline import PLACE, written

    numerics, overrides = record.numerics, []
    if any(rows.get("source") == "folder" for rows in record.data.values()):
        overrides.append(f"data_dir={PLACE}")
    before = {result.task for result in record.results if result.variant == BEFORE}
    for key, wanted in (("protocols", False), ("forgetting", True)):
        names = [name for name in record.protocols if (name in before) == wanted]
        overrides += [f"{key}={written(names)}"] if names else []
    overrides += [f"run.threads={numerics['threads']}"] if "threads" in numerics else []
    overrides += ["run.device=cpu"] if numerics.get("device") == "cpu" else []
    overrides += [f"compute={numerics['compute']}", f"compute.processes={numerics['processes']}"] if "compute" in numerics else []
    return overrides


def _requirements(numerics: Mapping[str, Any]) -> Iterator[str]:
    if "python" in numerics:
        yield f"# python {numerics['python']}"
    for name, value in sorted((numerics.get("packages") or {}).items()):
        yield f"{'# ' if name == 'parebench' else ''}{name.replace('_', '-')}=={value}"


def _sources(record: Record, store: Store) -> Iterator[str]:
    for name, digest in record.sources.items():
        kept = f" ({sourcetexts.KEPT}/{digest}.py in the store)" if sourcetexts.kept(digest, store.root) else ""
        yield f"{digest}  {name}{kept}"


def _data(record: Record) -> Iterator[str]:
    half = record.identity
    yield f"model {half['model']['name']}: {half['model']['weights']}"
    for name, digest in half.get("data", {}).items():
        yield f"{name}: {digest}"
    for name, rows in record.data.items():
        if "sha256" in rows:
            what = f"{rows.get('rows')} rows of {rows.get('dataset')} ({rows.get('split')}), {rows.get('revision')}"
            yield f"{name}: {what}, sha256 {rows['sha256']}"
    for name, cell in half.get("dependencies", {}).items():
        yield f"made from {name}: cell {cell}, which the command makes first"


def _other_cell(line: Any, record: Record) -> Iterator[str]:
    if line.cell != record.cell:
        names = ", ".join(line.differs) or "the form of the identity"
        yield f"the command gives cell {line.cell}, since no override reaches {names}"


def _other_code(record: Record) -> Iterator[str]:
    numerics = record.numerics.get("harness", NUMERICS)
    if numerics != NUMERICS:
        yield f"the harness computes with numerics {NUMERICS}, the record has {numerics}"
    today = sourcetexts.of_method(record.identity["method"])
    for name in sorted({*record.sources, *today}):
        then, now = record.sources.get(name), today.get(name)
        if record.sources and then != now:
            how = "joined its imports" if then is None else "gone from its imports" if now is None else f"changed ({then} -> {now})"
            yield f"{name} has {how}"


def _other_versions(numerics: Mapping[str, Any]) -> Iterator[str]:
    if numerics.get("python") not in (None, platform.python_version()):
        yield f"python is {platform.python_version()}, the record has {numerics['python']}"
    for name, value in sorted((numerics.get("packages") or {}).items()):
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "not installed"
        if here != value:
            yield f"{name} is {here}, the record has {value}"
    if numerics.get("machine") not in (None, platform.machine()):
        yield f"the machine is {platform.machine()}, the record has {numerics['machine']}"


def _hashes(record: Record) -> str:
    return ", ".join(f"{Path(name).name} {digest}" for name, digest in record.sources.items()) or "no hashes were kept"
