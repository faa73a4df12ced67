"""`parebench-report plot <kind>`; matplotlib is imported when a figure is made."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis import source

KINDS = {
    "pareto": "quality against trainable parameters, bytes, memory or seconds, with the Pareto front",
    "sparsity": "quality over sparsity, with what is not sparse as level lines",
    "curve": "quality over any swept key",
    "learning": "training loss and selection metric over the steps",
    "profile": "what a method measured by layer: ranks, sparsities",
    "critical": "mean ranks across tasks, and which are not told apart",
    "interference": "how merged methods disturb each other",
    "forgetting": "what was lost elsewhere against what was gained",
}
WIDTHS = ("column", "page")


def add(commands: Any) -> None:
    """Declare the subcommand."""
    plot = commands.add_parser("plot", help="a figure from records: PDF, SVG or PNG, as wide as a column or a page")
    plot.add_argument("kind", choices=KINDS, metavar="kind", help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    plot.add_argument("sweep", nargs="?", help="name of a sweep; default: all records")
    plot.add_argument("--out", type=Path, required=True, help="the file: its ending says the format (.pdf, .svg, .png)")
    plot.add_argument("--width", choices=WIDTHS, default="page", help="3.3 or 6.8 inches (default: page)")
    plot.add_argument(
        "--x", help="pareto: parameters, shipped, bytes, memory, seconds; curve: a key such as method.r; forgetting: an after-before column"
    )
    plot.add_argument("--y", help="curve: a protocol, or selection; forgetting: the column that training was for")
    plot.add_argument("--protocol", help="only this column")
    plot.add_argument("--model", help="only this model")
    plot.add_argument("--methods", help="only these methods or row labels, with commas between")
    plot.add_argument("--measure", help="profile: the measure, such as ranks")
    plot.add_argument("--matrix", type=Path, help="interference: a CSV file, names in its first row and column")
    source.add(plot, run)


def run(options: argparse.Namespace) -> None:
    """Make the figure and say where it is."""
    from analysis.plots.make import MAKERS
    from analysis.plots.style import save

    save(MAKERS[options.kind](options), options.out)
    Console(soft_wrap=True).print(Text(f"wrote {options.out}"))
