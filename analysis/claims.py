"""Published numbers beside ours: each claim of `analysis/papers`, counted on the meta device or looked up in records, and a verdict by
the tolerance or margin that it stated. A number of ours without its count or its cells cannot be made."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis.evidence import Answer, Evidence, NotAnsweredError, told
from analysis.formats import DASH, sentence
from analysis.papers import MEMORY, RELATIVE, SCALES, UNITS, Claim, Count, Direction, Measure, Published, calculated, tolerance
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
REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
SAME = "same direction at another scale"
OPPOSITE = "opposite direction at another scale"
MIXED = "mixed directions at another scale"
UNTOLD = "cannot be told at another scale"
LARGE = "not run, needs a model of 7B or more"
COUNTED = (EXACT, ROUNDED, BOUNDED, EXPLAINED, DISAGREES)
RECORDED = (REPRODUCED, NOT_REPRODUCED, SAME, OPPOSITE, MIXED, UNTOLD)
NEITHER = (UNVERIFIED, LARGE, NOT_RUN)
STYLES = {
    EXACT: "green", ROUNDED: "green", BOUNDED: "green", EXPLAINED: "yellow", DISAGREES: "bold red",
    REPRODUCED: "green", NOT_REPRODUCED: "bold red", SAME: "green", OPPOSITE: "red", MIXED: "yellow", UNTOLD: "yellow",
}  # fmt: skip
BILLIONS = re.compile(r"(\d+(?:\.\d+)?)B\b")
SEVEN = 6.5
"""Billions from which a model counts as one of 7B (LLaMA-7B has 6.7)."""
SLACK = 1e-9
"""Relative error of a sum or quotient in floating point; no rounding is as fine."""


@dataclass(frozen=True)
class Line:
    """One claim, judged. `ours` is in the claim's unit (parameters for K, M, B), None where nothing was counted or recorded."""

    slug: str
    claim: Claim
    ours: float | None
    verdict: str
    reason: str = ""
    """Why it is not run."""
    source: tuple[str, ...] = ()
    """What `ours` comes from: the overrides that were counted, or the cells."""
    answers: tuple[Answer, ...] = ()
    """Comparisons of records that ask what a `direction` claims."""

    def __post_init__(self) -> None:
        if (self.ours is None) != (not self.source):
            raise ValueError("a number of ours comes with the count or the cells that it was measured by, and nothing else does")

    @property
    def published(self) -> float:
        """The published value in the unit of `ours`."""
        return self.claim.value * UNITS.get(self.claim.unit, 1.0)

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's."""
        return None if self.ours is None else self.ours / self.published


def judged(files: Iterable[Published], kinds: Sequence[str], counts: Counts, evidence: Sequence[Evidence] | None = None) -> list[Line]:
    """Every claim of those kinds, measured where it says how. `UserError` naming the claim whose count is refused.

    Records are looked up in all stores of `evidence` (None = no store was given). What the project does not have is not run.
    """
    return [_line(file.slug, claim, counts, evidence) for file in files for claim in file.claims if claim.kind in kinds]


def _line(slug: str, claim: Claim, counts: Counts, evidence: Sequence[Evidence] | None) -> Line:
    if slug not in techniques():
        return _not_run(slug, claim, f"there is no method {slug} yet" if claim.not_run is None else claim.not_run)
    if claim.count is not None:
        return _counted(slug, claim, claim.count, counts)
    if claim.not_run is not None and claim.direction is None:
        return _not_run(slug, claim, claim.not_run)
    if evidence is None:
        return _not_run(slug, claim, "records are looked up with --store")
    return _recorded(slug, claim, evidence)


def _not_run(slug: str, claim: Claim, reason: str) -> Line:
    """A claim from memory has no verdict; an absolute score of a large model is set apart."""
    large = claim.kind != "params" and claim.direction is None and any(float(b) >= SEVEN for b in BILLIONS.findall(claim.setting.model))
    return Line(slug, claim, None, UNVERIFIED if claim.verified == MEMORY else LARGE if large else NOT_RUN, reason)


def _counted(slug: str, claim: Claim, count: Count, counts: Counts) -> Line:
    try:
        ours = measured(claim.unit, count, counts)
    except UserError as error:
        raise UserError(f"{slug}.yaml: claim {claim.id}: {error}") from error
    return Line(slug, claim, ours, verdict(claim, count, ours), source=tuple(count.overrides))


def _recorded(slug: str, claim: Claim, evidence: Sequence[Evidence]) -> Line:
    """By the number itself where a record has it, else by the comparisons that ask the same."""
    reasons = []
    if claim.query is not None:
        found, problems = [], []
        for store in evidence:
            try:
                found.append(store.value(claim.query))
            except NotAnsweredError as problem:
                problems.append(str(problem))
        if len(found) == 1:
            ours = SCALES[claim.unit] * found[0].value
            return Line(slug, claim, ours, _reproduced(claim, ours), source=found[0].cells)
        reasons.append("several stores answer" if found else "; ".join(dict.fromkeys(problems)))
    if claim.direction is None or claim.verified == MEMORY:
        return _not_run(slug, claim, "; ".join(reasons))
    answers = _once(answer for store in evidence for answer in store.answers(claim.direction))
    if not answers:
        return _not_run(slug, claim, "; ".join([*reasons, f"no record compares {_compared(claim.direction)}"]))
    compared = any(answer.comparison.difference for answer in answers)
    return Line(slug, claim, None, direction_of(told(answers)) if compared else NOT_RUN, "; ".join(reasons), answers=tuple(answers))


def _once(answers: Iterable[Answer]) -> list[Answer]:
    """Without those that another store has, too: the same cells, or the same reason for none."""
    return list({(a.comparison.model, a.comparison.column, a.cells, a.comparison.problem): a for a in answers}.values())


def _reproduced(claim: Claim, ours: float) -> str:
    if claim.verified == MEMORY or claim.query is None:
        return UNVERIFIED
    return REPRODUCED if _within(ours, claim.value, claim.query.tolerance, 1.0) else NOT_REPRODUCED


def direction_of(signs: Sequence[int]) -> str:
    """The verdict over what each comparison tells (1, -1, 0; see `analysis.evidence.told`)."""
    return {(True, False): SAME, (False, True): OPPOSITE, (True, True): MIXED}.get((1 in signs, -1 in signs), UNTOLD)


def _compared(direction: Direction) -> str:
    better, worse = direction.better + _settings(direction.better_at), direction.worse + _settings(direction.worse_at)
    both = f", both{_settings(direction.at)}" if direction.at else ""
    return f"{better} with {worse}{both}, under {', '.join(direction.columns)}"


def _settings(at: dict[str, Any] | None) -> str:
    return f" ({', '.join(f'{key}={value}' for key, value in at.items())})".replace("method.", "") if at else ""


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
    if _within(ours, published, count.tolerance, UNITS[claim.unit]):
        return BOUNDED if tolerance(count.tolerance) is None else ROUNDED
    return EXPLAINED if _accounts(claim, ours) else DISAGREES


def _within(ours: float, published: float, stated: str, unit: float) -> bool:
    """Does ours agree with the published value by the stated tolerance?"""
    width = tolerance(stated)
    if width is None:
        return ours >= published if stated == "at least" else ours <= published
    return abs(ours - published) <= width * unit * (1 + SLACK)


def _accounts(claim: Claim, ours: float) -> bool:
    arithmetic = claim.explanation and claim.explanation.arithmetic
    return bool(arithmetic) and _same(calculated(arithmetic), ours)


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SLACK * max(abs(a), abs(b))


def failed(lines: Iterable[Line]) -> bool:
    """Is there a disagreement that nothing explains?"""
    return any(line.verdict in (DISAGREES, NOT_REPRODUCED) for line in lines)


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
        shown.add_row(*names, Text(published_text(claim)), Text(ours_text(line)), ratio, verdict)
    return Group(shown, *_reasons(lines), Text(_summary(lines)))


def ours_text(line: Line) -> str:
    """The measured count as people read it; a dash where nothing was counted."""
    if line.ours is None:
        return DASH
    parameters = line.claim.unit in UNITS and line.claim.unit not in RELATIVE
    return f"{int(line.ours):,}" if parameters else f"{line.ours:.4g} {line.claim.unit}"


def published_text(claim: Claim) -> str:
    """The published number with its unit."""
    number = f"{int(claim.value):,}" if claim.value == int(claim.value) else f"{claim.value:g}"
    return number if claim.unit == "parameters" else f"{number} {claim.unit}"


def _reasons(lines: Iterable[Line]) -> list[Text]:
    return [Text(f"{line.slug} {line.claim.id}: {text}") for line in lines for text in why(line)]


def why(line: Line) -> list[str]:
    """What is behind a verdict: the reason, the explanation and the cells in one sentence, then each comparison that was found."""
    text = "; ".join(part for part in (line.reason, _explained(line), _cells(line)) if part)
    return [*([text] if text else []), *answered(line)]


def answered(line: Line) -> list[str]:
    """A sentence for each comparison that was found: the paired difference, the margin, and what it tells."""
    margin = line.claim.direction.margin if line.claim.direction else 0
    on_par = f" with a margin of {margin:g}" if margin else ""
    words = {1: "same direction", -1: "opposite direction", 0: "cannot be told"}
    texts = []
    for answer, sign in zip(line.answers, told(line.answers), strict=True):
        unknown = ": cannot be told, since no row has two seeds" if answer.comparison.difference else ""
        texts.append(sentence(answer.comparison, 4) + (f": {words[sign]}{on_par}" if answer.gain else unknown))
    return texts


def _cells(line: Line) -> str:
    return f"cells {', '.join(line.source)}" if line.ours is not None and line.claim.query else ""


def _explained(line: Line) -> str:
    explanation = line.claim.explanation
    if explanation is None:
        return ""
    if explanation.arithmetic is None:
        return explanation.text
    return f"{explanation.text} ({explanation.arithmetic} = {calculated(explanation.arithmetic):,.10g})"


def _summary(lines: Sequence[Line]) -> str:
    """How many claims have which verdict; those by counts, those by records and those by neither apart."""
    classes = {"counted": COUNTED, "by records": RECORDED, "neither": NEITHER}
    texts = []
    for name, verdicts in classes.items():
        tally = {verdict: sum(line.verdict == verdict for line in lines) for verdict in verdicts}
        if total := sum(tally.values()):
            texts.append(f"{name}, {total} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n))
    return "\n".join(texts)
