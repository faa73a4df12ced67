"""`parebench-report methods`: what exists, with its paper, family, needs, what it leaves, and the models that it works on."""

import argparse
import ast
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis import papers, render
from analysis.formats import csv_lines
from analysis.render import Entry, Grid, Sheet
from harness.registry import MethodSpec, files, load_spec
from harness.store import write_atomically
from harness.typed import build
from methods.spec import Traits, UserError

TITLES = ("method", "family", "models", "needs", "leaves", "year", "arXiv", "paper", "what it is")
WIDTH = 160
"""Columns that the terminal form needs to be read."""
NEEDS: Mapping[str, Callable[[Traits], bool]] = {
    "no training": lambda t: not t.trains,
    "training of the head alone": lambda t: t.trains_head_only,
    "training": lambda t: t.trains and not t.trains_head_only,
    "no backward passes": lambda t: not t.gradients,
    "calibration text": lambda t: t.calibration,
    "biases in the model": lambda t: t.biases,
    "finished weights": lambda t: t.external,
}
LEAVES: Mapping[str, Callable[[Traits], bool]] = {
    "a stock model": lambda t: t.folds and not t.recovers,
    "the model as loaded, with what was trained": lambda t: t.recovers,
    "a smaller model": lambda t: t.reshapes,
    "modules of its own": lambda t: not t.folds and not t.reshapes,
    "zeros": lambda t: t.sparse,
    "a sparse vector": lambda t: t.sparse_delta,
    "a PEFT adapter": lambda t: t.exports_lora,
}


@dataclass(frozen=True)
class Technique:
    """One method in words."""

    slug: str
    family: str
    models: tuple[str, ...]
    needs: tuple[str, ...]
    leaves: tuple[str, ...]
    paper: papers.Paper | None
    """None where `analysis/papers` has no file: baselines of the project."""
    about: str

    def texts(self) -> list[str]:
        """As `TITLES` has it."""
        lists = [", ".join(part) for part in (self.models, self.needs, self.leaves)]
        published = [str(self.paper.year), self.paper.arxiv or "", self.paper.title] if self.paper else ["", "", ""]
        return [self.slug, self.family, *lists, *published, self.about]


def catalogue() -> list[Technique]:
    """Every method, by family and name; nothing is imported, only read."""
    return sorted((_technique(load_spec(slug)) for slug in files()), key=lambda one: (one.family, one.slug))


def _technique(spec: MethodSpec) -> Technique:
    traits = _traits(spec)
    models = (*traits.families, *(["mixtures of experts"] if traits.moe else []))
    needs = [text for text, holds in NEEDS.items() if holds(traits)]
    if traits.budget_multiplier != 1:
        needs.append(f"{traits.budget_multiplier:g} times the budget")
    if hasattr(spec.config, "dependencies"):
        needs.append("other cells first, by its settings")
    leaves = tuple(text for text, holds in LEAVES.items() if holds(traits))
    paper = papers.published(spec.slug).paper if spec.slug in papers.slugs() else None
    return Technique(spec.slug, spec.path.parent.name, models, tuple(needs), leaves, paper, _about(spec.path))


def _traits(spec: MethodSpec) -> Traits:
    """As its own settings adjust them; a method that needs to be told where weights lie has no settings of its own."""
    return spec.traits if spec.traits.external else spec.adjusted(build(spec.config, _values(spec.slug), spec.slug))


def _values(slug: str) -> dict[str, Any]:
    """The settings that a method has without more being said."""
    held = yaml.safe_load((resources("conf") / "method" / f"{slug}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in held.items() if key not in ("name", "recipes")}


def _about(path: Path) -> str:
    """The first line of its class's text."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    own = [node for node in nodes if any(isinstance(child, ast.ClassDef) and child.name == "Config" for child in node.body)]
    return next((line for node in own for line in (ast.get_docstring(node) or "").splitlines()[:1]), "")


def sheet(found: list[Technique]) -> Sheet:
    """As text of any format."""
    lines = [list(map(Entry, one.texts())) for one in found]
    notes = ["models, needs and what it leaves: as it is by default, settings may change them", "a blank paper: a baseline of the project"]
    return Sheet(f"{len(found)} methods", "", [Grid(list(TITLES), lines, len(TITLES))], notes)


def csv_text(found: list[Technique]) -> str:
    """One line per method."""
    return csv_lines([TITLES, *(one.texts() for one in found)])


def terminal(found: list[Technique]) -> Table:
    """What rich prints: the paper in one column, so that it fits."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for title in ("method", "family"):
        shown.add_column(title, no_wrap=True)
    for title in ("models", "needs", "leaves", "paper", "what it is"):
        shown.add_column(title, overflow="fold")
    for one in found:
        slug, family, models, needs, leaves, year, arxiv, paper, about = one.texts()
        source = ", ".join(text for text in (paper, year, arxiv and f"arXiv {arxiv}") if text)
        shown.add_row(*map(Text, (slug, family, models, needs, leaves, source, about)))
    return shown


FORMATS = {
    "terminal": lambda found: _printed(found, WIDTH),
    "md": lambda found: render.markdown(sheet(found)),
    "csv": csv_text,
    "latex": lambda found: render.latex(sheet(found)),
    "html": lambda found: render.html(sheet(found)),
}


def _printed(found: list[Technique], width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as held:
        console.print(terminal(found))
    return held.get()


def add(commands: Any) -> None:
    """Declare the subcommand."""
    command = commands.add_parser("methods", help="what methods exist: paper, family, needs, models")
    command.add_argument("--family", help="only those of one family")
    command.add_argument("--format", choices=FORMATS, default="terminal", help="default: terminal")
    command.add_argument("--out", type=Path, help="write to this file")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print or write the catalogue."""
    found = catalogue()
    families = sorted({one.family for one in found})
    if options.family not in (None, *families):
        raise UserError(f"--family {options.family} has no method; allowed: {', '.join(families)}")
    found = [one for one in found if options.family in (None, one.family)]
    if options.out:
        write_atomically(options.out, FORMATS[options.format](found))
    elif options.format == "terminal":
        Console(width=max(Console().width, WIDTH)).print(terminal(found))
    else:
        sys.stdout.write(FORMATS[options.format](found))
