"""What `parebench-report page` puts into its file beside the table: details of cells, claims, when and how it was made."""

import argparse
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from analysis import papers
from analysis.changes import with_changes
from analysis.claims import UNVERIFIED, Counts, Line, judged
from analysis.evidence import Evidence
from analysis.layout import Layout
from analysis.means import with_means
from analysis.page import Made, details, page
from analysis.papers import MEMORY, Published
from analysis.remakes import remakes
from analysis.tables import Table

UNCOUNTED = "not counted"
"""The verdict of a count that was not asked for."""


def options(command: argparse.ArgumentParser) -> None:
    """What the subcommand takes beside the sweep, the store and the filters."""
    command.add_argument("--out", type=Path, help="default: <store>/<sweep>.html")
    command.add_argument("--counts", action="store_true", help="also count the published parameter counts on the meta device (minutes)")


def report(
    table: Table, frame: pd.DataFrame, store: Path, sweep: str | None, layout: Layout, counts: Counts | None, argv: Sequence[str]
) -> str:
    """The whole page; `counts` None leaves counts out."""
    whole, _ = with_changes(with_means(frame, layout.means).frame)
    found = claims(counts, [Evidence(frame, store, sweep)])
    made = Made(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), shlex.join(["parebench-report", *argv]))
    return page(table, whole, details(frame, store, mirror(argv), remakes(frame, store)), found, made)


def mirror(argv: Sequence[str]) -> str | None:
    """The option by which the records were read from W&B, since their store is gone afterwards; None where a store was read."""
    at = next((i for i, word in enumerate(argv) if word.startswith("--wandb")), None)
    return None if at is None else shlex.join(argv[at : at + (1 if "=" in argv[at] else 2)])


def claims(counts: Counts | None, evidence: Sequence[Evidence]) -> list[Line]:
    """Every claim of `analysis/papers`, judged by these records; what needs a count says so where counts are left out."""
    files = [papers.published(slug) for slug in papers.slugs()]
    if counts is not None:
        return judged(files, papers.KINDS, counts, evidence)
    uncounted = [Line(file.slug, claim, None, *_left_out(claim)) for file in files for claim in file.claims if claim.count is not None]
    rest = [Published(file.slug, file.paper, [claim for claim in file.claims if claim.count is None]) for file in files]
    return sorted([*judged(rest, papers.KINDS, _refused, evidence), *uncounted], key=lambda line: line.slug)


def _left_out(claim: papers.Claim) -> tuple[str, str]:
    return UNVERIFIED if claim.verified == MEMORY else UNCOUNTED, "make the page with --counts to count it on the meta device"


def _refused(overrides: Sequence[str]) -> dict:
    raise AssertionError("claims with counts were taken out")
