"""`parebench-report compare`: two methods, rows or cells on the same examples, and the examples on which they differ."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from analysis import formats, source
from analysis.changes import BEFORE, with_changes
from analysis.compare import Comparison, Samples, compare_with
from analysis.layout import layout
from analysis.load import DONE, predictions
from analysis.means import with_means
from analysis.perexample import ANSWERS
from analysis.stats import NotComparable, mcnemar
from harness.nearmiss import nearest
from methods.spec import UserError

SHORTEST = 4
"""Characters of a cell id that name it where no row is called so."""
LONGEST = 160
"""Characters shown of an answer or a text."""
LAST = "last"


@dataclass(frozen=True)
class Pair:
    """One run of each side, example by example."""

    seed: str
    """Of both runs, or of either."""
    table: pd.DataFrame
    """A line an example that both were measured on: `index` (in the first run's file), `example`, `label` and `answer` as text,
    `score_a`, `score_b`."""

    @property
    def binary(self) -> bool:
        """Every score is 0 or 1, so an example is right or wrong."""
        return bool(np.isin(self.table[["score_a", "score_b"]].to_numpy(), (0, 1)).all())

    def counts(self, a: str, b: str) -> str:
        """How many examples only one of the two gets right."""
        first, second, n = self.table["score_a"], self.table["score_b"], len(self.table)
        if not self.binary:
            return f"seed {self.seed}: {a} scores higher on {(first > second).sum()}, {b} on {(first < second).sum()} of {n} examples"
        only, other, both = ((first > second).sum(), (first < second).sum(), (first * second).sum())
        right = f"only {a} right on {only}, only {b} on {other}, both on {int(both)}, neither on {n - only - other - int(both)}"
        return f"seed {self.seed}: {right} of {n} examples"

    def differing(self) -> pd.DataFrame:
        """The examples with other scores, the largest difference first, then in the order of the file."""
        gap = (self.table["score_a"] - self.table["score_b"]).abs()
        return self.table.assign(gap=gap)[gap > 0].sort_values(["gap", "index"], ascending=[False, True])


def add(commands: Any) -> None:
    """Declare the subcommand."""
    text = "paired difference of two methods, rows or cells, and the examples where they differ"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument("a", help="method, row label, or id of a cell (the beginning is enough)")
    command.add_argument("b", help="what it is compared with, likewise")
    command.add_argument("--sweep", help="name of a sweep; default: all records")
    command.add_argument("--variants", action="store_true", help="every variant, the last checkpoint beside the selected one too")
    command.add_argument("--protocol", help="default: every protocol that both were measured on")
    command.add_argument("--examples", type=int, default=0, metavar="N", help="show up to N examples on which they differ, and count all")
    command.add_argument("--data-dir", type=Path, metavar="FOLDER", help="local data, where the texts of the examples are looked for")
    source.add(command, run)


def run(options: argparse.Namespace) -> None:
    """Print the comparisons that the options ask for; `UserError` where there is none."""
    frame = source.frame(options)
    if not options.variants:
        frame = frame[frame["variant"] != LAST]
    means = with_means(frame, layout(options.sweep).means)
    whole, changes = with_changes(means.frame)
    known = sorted(set(whole["column"].dropna()))
    if options.protocol not in (None, *known):
        raise UserError(f"--protocol {options.protocol} is in no record; there are: {', '.join(known)}")
    (a, b), whole = sides(whole, options.a, options.b)
    samples = Samples(whole, options.store, means.columns | changes)
    shown = whole if options.variants else whole[whole["variant"] != BEFORE]
    found = compare_with(shown, samples, b, options.protocol, a)
    if not found:
        raise UserError(f"{options.a} and {options.b} were measured under no common protocol and model")
    console = Console(soft_wrap=True)
    for comparison in found:
        console.print(Text(formats.sentence(comparison, 4) + exact(comparison, samples)))
        for pair in pairs(comparison, shown, options.store) if options.examples > 0 else ():
            console.print(Text(f"  {pair.counts(comparison.a, comparison.b)}"))
            if len(pair.differing()):
                texts = _texts(pair, _rows(shown, comparison)[0], options)
                Console(width=max(Console().width, 120)).print(listed(pair, comparison, options.examples, texts))


def sides(frame: pd.DataFrame, *given: str) -> tuple[list[str], pd.DataFrame]:
    """The names of what is compared, and the frame with rows for the cells among them.

    A cell stands in a row of its own. Two cells are two finished models: nothing but their examples varies. A cell beside a method
    keeps its seed and is paired with the method's run of that seed. `UserError` for what is neither a row nor one cell.
    """
    cells = [_cell(frame, name) for name in given]
    if len(set(given)) < len(given) or (None not in cells and len(set(cells)) < len(cells)):
        raise UserError(f"{given[0]} is given twice; give two methods, rows or cells")
    alone = None not in cells
    parts = [] if alone else [frame]
    names = list(given)
    for i, cell in enumerate(cells):
        if cell is not None:
            own = frame[frame["cell"] == cell]
            seed = "" if own["deterministic"].iloc[0] else f", seed {own['seed'].iloc[0]}"
            names[i] = f"{cell} ({own['label'].iloc[0]}{seed})"
            variants = own["variant"].map(lambda variant: "" if variant == "main" else f" [{variant}]")
            parts.append(own.assign(method=names[i], label=names[i] + variants, **({"deterministic": True} if alone else {})))
    return names, pd.concat(parts, ignore_index=True) if any(cells) else frame


def _cell(frame: pd.DataFrame, name: str) -> str | None:
    """The cell that a name stands for; None where it is a method or a row."""
    done = frame[frame["status"] == DONE]
    if name in set(done["label"]) | set(done["method"]):
        return None
    found = sorted({cell for cell in done["cell"] if cell.startswith(name)}) if len(name) >= SHORTEST else []
    if len(found) > 1 and name not in found:
        raise UserError(f"{name} may be the cell {', '.join(found[:10])}; give more of the id")
    if not found:
        rows = sorted(set(done["label"]))
        close = nearest(name, [*rows, *set(done["cell"])])
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no row is called {name} and no cell begins so; {hint}there are: {', '.join(rows)}")
    return name if name in found else found[0]


def exact(comparison: Comparison, samples: Samples) -> str:
    """McNemar's exact test where it applies: one seed pair of a 0/1 metric."""
    try:
        first, second = (samples.get(comparison.model, comparison.column, label) for label in (comparison.a, comparison.b))
        return f"; McNemar exact {formats.p_value(mcnemar(first, second))}"
    except NotComparable:
        return ""


def _rows(frame: pd.DataFrame, comparison: Comparison) -> list[pd.DataFrame]:
    """The finished rows of both sides, one a seed."""
    own = frame[(frame["model"] == comparison.model) & (frame["column"] == comparison.column) & (frame["status"] == DONE)]
    own = own[own["predictions"].notna()].sort_values(["seed", "cell"]).drop_duplicates(["label", "seed"])
    return [own[own["label"] == label] for label in (comparison.a, comparison.b)]


def pairs(comparison: Comparison, frame: pd.DataFrame, store: Path) -> list[Pair]:
    """The paired runs of a comparison; none for a mean or a change, which has no examples of its own.

    Runs are paired by seed; a deterministic one is paired with every run of the other side.
    """
    first, second = _rows(frame, comparison)
    if first.empty or second.empty:
        return []
    found = []
    for one in first.itertuples():
        for other in second.itertuples():
            if one.seed == other.seed or one.deterministic or other.deterministic:
                seed = str(one.seed) if one.seed == other.seed else f"{one.seed} and {other.seed}"
                found.append(Pair(seed, _joined(*(predictions(store, row.cell, row.predictions) for row in (one, other)))))
    return found


def _joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Both tables by example; the n-th occurrence of a repeated document is paired with the n-th."""
    sides = []
    for table in (first, second):
        answer = next((name for name in ANSWERS if name in table), None)
        sides.append(pd.DataFrame({
            "example": table["example"].astype(str), "occurrence": table.groupby("example").cumcount(), "index": range(len(table)),
            "label": table["label"].map(str) if "label" in table else "", "score": table["score"].astype(float),
            "answer": table[answer].map(str) if answer else "",
        }))  # fmt: skip
    return sides[0].merge(sides[1][["example", "occurrence", "score", "answer"]], on=["example", "occurrence"], suffixes=("_a", "_b"))


def listed(pair: Pair, comparison: Comparison, most: int, texts: dict[str, str]) -> RichTable:
    """The first examples on which the two differ."""
    shown = RichTable("index", "label", comparison.a, comparison.b, "example", box=SIMPLE)
    for row in pair.differing().head(most).itertuples():
        one, other = (_said(answer, score) for answer, score in ((row.answer_a, row.score_a), (row.answer_b, row.score_b)))
        cells = (str(row.index), _short(row.label), one, other, _short(texts.get(row.example, row.example)))
        shown.add_row(*map(Text, cells))
    return shown


def _said(answer: str, score: float) -> str:
    """What the model answered and what that was worth."""
    worth = {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.4g}")
    return f"{_short(answer)} ({worth})" if answer else worth


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _texts(pair: Pair, rows: pd.DataFrame, options: argparse.Namespace) -> dict[str, str]:
    """Texts of the examples that are shown, where their data is on this machine."""
    from harness.exampletexts import texts

    wanted = set(pair.differing().head(options.examples)["example"])
    return texts(rows["rows"].iloc[0], wanted, options.data_dir, Path(os.environ.get("PAREBENCH_ASSETS", "assets")))
