"""Published numbers as data: `analysis/papers/<slug>.yaml`, one file a technique, typed and checked. Torch-free.

A claim says what a paper prints, for which setting, where, how that was verified, and one of: `count` (how the number is had on the
meta device), `query` (which records hold it), `not_run` (why neither). Where a paper says that one technique is better than another, or
on par, `direction` says which records ask the same elsewhere. Tolerances and margins are written before anything is measured.
"""

import ast
import operator
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from analysis.layout import CENTERS
from harness.nearmiss import unknown
from harness.typed import build
from methods.spec import UserError, choice

T = TypeVar("T")
FOLDER = Path(str(files("analysis"))) / "papers"
KINDS = ("params", "quality", "cost")
MEMORY = "from memory"
VERIFIED = ("read in the paper", "official code", "arithmetic", "read elsewhere", MEMORY)
"""How a published value was verified. `arithmetic`: not printed, it follows from the published architecture; `read elsewhere`: another
paper or note quotes it."""
QUANTITIES = ("trainable_method", "trainable_head", "trainable", "head", "total", "prunable")
"""What `harness.params` counts."""
UNITS = {"parameters": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "%": 1.0, "x": 1.0}
"""Units of countable claims -> how many parameters; `%` and `x` are shares and factors and need `count.over`."""
RELATIVE = {"%": 100.0, "x": 1.0}
BOUNDS = ("at least", "at most")
SCALES = {"points": 100.0, "%": 100.0, "accuracy": 100.0, "F1": 100.0, "perplexity": 1.0}
"""Units of claims that records hold -> factor of the recorded metric."""


@dataclass
class Paper:
    """Where the claims were published; names as on the paper."""

    title: str
    authors: list[str]
    year: int
    arxiv: str | None
    venue: str


@dataclass
class Setting:
    """What the number is about."""

    model: str
    protocol: str


@dataclass
class Measure:
    """One count: the quantity of a prepared model under overrides, as typed after `parebench-report params`."""

    overrides: list[str]
    quantity: str

    def __post_init__(self) -> None:
        choice("quantity", self.quantity, QUANTITIES)


@dataclass
class Count(Measure):
    """How a claim is had from shapes alone; over another count where the unit is `%` or `x`."""

    tolerance: str
    """`exact`, `+-0.05` in the unit of the claim (rounding), `at least` or `at most`."""
    over: Measure | None = None


@dataclass
class Query:
    """Which records would hold the number."""

    method: str
    model: str
    protocol: str
    metric: str
    tolerance: str
    overrides: list[str] | None = None
    """As typed after `parebench`, of the method alone: `method.r=8`."""
    budget: str | None = None
    """The budget that the record must have; None = any (nothing is trained)."""
    center: str = "mean"
    """Over the seeds: `mean` or `median`."""

    def __post_init__(self) -> None:
        tolerance(self.tolerance)
        choice("center", self.center, CENTERS)


@dataclass
class Direction:
    """A comparison of two techniques, or of one in two configurations, that records of any model and budget can answer.

    Values in `at` (both sides), `better_at`, `worse_at` are configuration keys and what they must be; a list allows several.
    """

    better: str
    """The method that the paper finds better (or, with a margin, not worse)."""
    worse: str
    columns: list[str]
    """Patterns of protocol ids (`*` and `?`) under which the comparison may be answered."""
    at: dict[str, Any] | None = None
    better_at: dict[str, Any] | None = None
    worse_at: dict[str, Any] | None = None
    equal: list[str] | None = None
    """Keys in which the two rows of a comparison must agree."""
    margin: float = 0.0
    """How much worse than `worse` still counts as on par, on the scale on which differences are taken: a fraction of the metric, or of
    the logarithm of a perplexity."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1 or not self.columns:
            raise UserError(f"margin={self.margin}, columns={self.columns} is not allowed; allowed: 0 <= margin < 1, one pattern or more")


@dataclass
class Against:
    """The number that the paper compares its own with."""

    what: str
    value: float


@dataclass
class Explanation:
    """Why our count differs from the published one (or what stands in for it); an explanation holds only if its arithmetic is our count."""

    text: str
    arithmetic: str | None = None
    """Numbers and + - * / // ** alone; in parameters, or in the unit of a relative claim."""

    def __post_init__(self) -> None:
        if self.arithmetic is not None:
            calculated(self.arithmetic)


@dataclass
class Claim:
    """One published number."""

    id: str
    kind: str
    what: str
    setting: Setting
    value: float
    unit: str
    where: str
    verified: str
    source: str | None = None
    """The file or passage in which it was verified, where `where` does not say it."""
    against: Against | None = None
    count: Count | None = None
    query: Query | None = None
    not_run: str | None = None
    direction: Direction | None = None
    explanation: Explanation | None = None

    def __post_init__(self) -> None:
        choice("kind", self.kind, KINDS)
        choice("verified", self.verified, VERIFIED)
        given = [name for name in ("count", "query", "not_run") if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.direction is None):
            raise UserError(
                f"gives {' and '.join(given) or 'nothing'}; give exactly one of: count, query, not_run, or a direction with or without one"
            )
        if self.query is not None:
            choice("unit", self.unit, SCALES)
        if self.count is not None:
            _countable(self, self.count)


@dataclass
class Published:
    """The file of one technique."""

    slug: str
    paper: Paper
    claims: list[Claim]


def slugs() -> list[str]:
    """The techniques that have a file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def published(slug: str) -> Published:
    """The file of a technique. Raises `UserError`, one sentence that names the file and the key, for what it does not allow."""
    if slug not in slugs():
        raise UserError(unknown("claims of", slug, slugs()))
    text = (FOLDER / f"{slug}.yaml").read_text()
    return parse(slug, yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def parse(slug: str, values: Any) -> Published:
    """`published` of a file that is read already."""
    name = f"{slug}.yaml"
    if not isinstance(values, Mapping) or set(values) != {"paper", "claims"} or not isinstance(values["claims"], list):
        raise UserError(f"{name}: the top level holds exactly two keys: paper (a mapping) and claims (a list)")
    claims = [_typed(Claim, block, f"{name}: claims[{index}]") for index, block in enumerate(values["claims"])]
    ids = [claim.id for claim in claims]
    if twice := [claim_id for claim_id in ids if ids.count(claim_id) > 1]:
        raise UserError(f"{name}: two claims have the id {twice[0]}; ids are unique in a file")
    return Published(slug, _typed(Paper, values["paper"], f"{name}: paper"), claims)


def tolerance(text: str) -> float | None:
    """Half width of a `+-` tolerance in the unit of the claim, 0 for `exact`, None for a bound; `UserError` for another text."""
    if text == "exact":
        return 0.0
    if text in BOUNDS:
        return None
    sign, number = text[:2], text[2:]
    try:
        width = float(number)
    except ValueError:
        width = -1.0
    if sign != "+-" or not 0 < width < float("inf"):
        raise UserError(f"tolerance={text} is not allowed; allowed: exact, {', '.join(BOUNDS)}, +-<number> in the unit of the claim")
    return width


OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}  # fmt: skip


def calculated(text: str) -> float:
    """The value of an expression of numbers, parentheses and + - * / // **; `UserError` for anything else."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, ArithmeticError, KeyError):
        raise UserError(f"arithmetic={text} is not allowed; allowed: numbers, parentheses and + - * / // **") from None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise TypeError


def _countable(claim: Claim, count: Count) -> None:
    choice("unit", claim.unit, UNITS)
    tolerance(count.tolerance)
    if (claim.unit in RELATIVE) != (count.over is not None):
        raise UserError(
            f"unit={claim.unit} {'needs' if claim.unit in RELATIVE else 'has no'} count.over; give it for % and x, and only then"
        )


def _typed(schema: type[T], values: Any, prefix: str) -> T:
    """`harness.typed.build`, nested blocks first, every error under the name of its block."""
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix}={values} is not allowed; allowed: a mapping of {', '.join(f.name for f in fields(schema))}")
    hints = typing.get_type_hints(schema)
    nested = {key: block for key, hint in hints.items() if (block := _block(hint)) and values.get(key) is not None}
    given = {key: _typed(nested[key], value, f"{prefix}.{key}") if key in nested else value for key, value in values.items()}
    try:
        return build(schema, given, prefix)
    except UserError as error:
        text = str(error)
        raise error if text.startswith(prefix) else UserError(f"{prefix}: {text}") from error


def _block(hint: Any) -> Any:
    """The dataclass in a hint (`X` or `X | None`), or None."""
    options: Sequence[Any] = typing.get_args(hint) or (hint,)
    return next((option for option in options if is_dataclass(option)), None)
