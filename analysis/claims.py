"""Published counts beside ours: each claim of `analysis/papers`, measured on the meta device, and a verdict by its own tolerance."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis.formats import DASH
from analysis.papers import MEMORY, RELATIVE, UNITS, Claim, Count, Measure, Published, calculated, tolerance
from harness.registry import files as techniques
from methods.spec import UserError

Counts = Callable[[Sequence[str]], dict[str, Any]]
"""Overrides -> counts, as `harness.params.Counter` gives them."""

EXACT = "exact"
ROUNDED = "agrees within stated rounding"
BOUNDED = "agrees with stated bound"
EXPLAINED = "disagrees, explained"
DISAGREES = "disagrees"
UNVERIFIED = "from memory, no verdict"
NOT_RUN = "not run"
STYLES = {EXACT: "green", ROUNDED: "green", BOUNDED: "green", EXPLAINED: "yellow", DISAGREES: "bold red"}
SLACK = 1e-9
"""Relative error of a sum or quotient in floating point; no rounding is as fine."""


@dataclass(frozen=True)
class Line:
    """One claim, judged. `ours` is a measured count in the claim's unit (parameters for K, M, B), None where nothing was counted."""

    slug: str
    claim: Claim
    ours: float | None
    verdict: str
    reason: str = ""
    """Why it is not run."""

    @property
    def published(self) -> float:
        """The published value in the unit of `ours`."""
        return self.claim.value * UNITS.get(self.claim.unit, 1.0)

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's."""
        return None if self.ours is None else self.ours / self.published


def judged(files: Iterable[Published], kinds: Sequence[str], counts: Counts) -> list[Line]:
    """Every claim of those kinds, measured where it says how. `UserError` naming the claim whose count is refused.

    A technique that the project does not have (yet) is not run.
    """
    return [_line(file.slug, claim, counts) for file in files for claim in file.claims if claim.kind in kinds]


def _line(slug: str, claim: Claim, counts: Counts) -> Line:
    if claim.count is None or slug not in techniques():
        reason = claim.not_run or ("" if claim.count is None else f"there is no method {slug} yet")
        return Line(slug, claim, None, UNVERIFIED if claim.verified == MEMORY else NOT_RUN, reason)
    try:
        ours = measured(claim.unit, claim.count, counts)
    except UserError as error:
        raise UserError(f"{slug}.yaml: claim {claim.id}: {error}") from error
    return Line(slug, claim, ours, verdict(claim, claim.count, ours))


def measured(unit: str, count: Count, counts: Counts) -> float:
    """The count in parameters; in `%` or as a factor where it is over another."""
    ours = _number(count, counts)
    return ours if count.over is None else RELATIVE[unit] * ours / _number(count.over, counts)


def _number(measure: Measure, counts: Counts) -> int:
    return counts(measure.overrides)[measure.quantity]


def verdict(claim: Claim, count: Count, ours: float) -> str:
    """By the tolerance that the claim states. An explanation holds only where its arithmetic gives our count."""
    published = claim.value * UNITS[claim.unit]
    if claim.verified == MEMORY:
        return UNVERIFIED
    if _same(ours, published):
        return EXACT
    width = tolerance(count.tolerance)
    if width is None and (ours >= published if count.tolerance == "at least" else ours <= published):
        return BOUNDED
    if width is not None and abs(ours - published) <= width * UNITS[claim.unit] * (1 + SLACK):
        return ROUNDED
    return EXPLAINED if _accounts(claim, ours) else DISAGREES


def _accounts(claim: Claim, ours: float) -> bool:
    arithmetic = claim.explanation and claim.explanation.arithmetic
    return bool(arithmetic) and _same(calculated(arithmetic), ours)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SLACK * max(abs(a), abs(b))


def failed(lines: Iterable[Line]) -> bool:
    """Is there a disagreement that nothing explains?"""
    return any(line.verdict == DISAGREES for line in lines)


def report(lines: Sequence[Line]) -> Group:
    """The table, then the reasons of what is not plain agreement, then how many claims have which verdict."""
    shown = Table(box=SIMPLE, pad_edge=False)
    for title in ("method", "claim"):
        shown.add_column(title, no_wrap=True)
    for title in ("model", "what"):
        shown.add_column(title)
    for title in ("published", "ours", "ratio"):
        shown.add_column(title, justify="right", no_wrap=True)
    shown.add_column("verdict", no_wrap=True)
    for line in lines:
        claim = line.claim
        ratio = DASH if line.ratio is None else f"{line.ratio:.4g}"
        verdict = Text(line.verdict, style=STYLES.get(line.verdict, "dim"))
        names = map(Text, (line.slug, claim.id, claim.setting.model, claim.what))
        shown.add_row(*names, Text(_published(claim)), Text(ours_text(line)), ratio, verdict)
    return Group(shown, *_reasons(lines), Text(_summary(lines)))


def ours_text(line: Line) -> str:
    """The measured count as people read it; a dash where nothing was counted."""
    if line.ours is None:
        return DASH
    relative = line.claim.unit in RELATIVE
    return f"{line.ours:.4g} {line.claim.unit}" if relative else f"{int(line.ours):,}"


def _published(claim: Claim) -> str:
    number = f"{int(claim.value):,}" if claim.value == int(claim.value) else f"{claim.value:g}"
    return number if claim.unit == "parameters" else f"{number} {claim.unit}"


def _reasons(lines: Iterable[Line]) -> list[Text]:
    found = []
    for line in lines:
        claim = line.claim
        told = [line.reason, _explained(line)]
        if text := "; ".join(part for part in told if part):
            found.append(Text(f"{line.slug} {claim.id}: {text}"))
    return found


def _explained(line: Line) -> str:
    explanation = line.claim.explanation
    if explanation is None:
        return ""
    if explanation.arithmetic is None:
        return explanation.text
    return f"{explanation.text} ({explanation.arithmetic} = {calculated(explanation.arithmetic):,.10g})"


def _summary(lines: Sequence[Line]) -> str:
    order = (EXACT, ROUNDED, BOUNDED, EXPLAINED, DISAGREES, UNVERIFIED, NOT_RUN)
    tally = {verdict: sum(line.verdict == verdict for line in lines) for verdict in order}
    return f"{len(lines)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n)
