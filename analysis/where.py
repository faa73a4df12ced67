"""Conditions on the rows of the tidy frame, in the language of `DataFrame.query`: `method in ["lora", "dora"] and seed < 3`.

Names with dots stand in backticks: `recipe.lr`. A condition is checked before it is evaluated: it may name columns, compare, calculate
and join conditions; calls, attributes, subscripts and variables of the program (`@name`) are refused.
"""

import ast
import re
from collections.abc import Iterator

import pandas as pd
from pandas.errors import UndefinedVariableError

from harness.nearmiss import unknown
from methods.spec import UserError

NOT_ASKED = ("rows", "data", "numerics", "inherited", "sources", "predictions")
"""Columns that hold no single value."""
ALLOWED = (
    ast.Expression, ast.Load, ast.Name, ast.Constant, ast.List, ast.Tuple, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub,
    ast.UAdd, ast.Invert, ast.Compare, ast.cmpop, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr,
)  # fmt: skip
QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`(?P<name>[^`]*)`""")
"""Text literals, in which a backtick is nothing special, and quoted names."""
EXAMPLE = "write for instance --where \"method in ['lora', 'dora'] and `recipe.lr` < 0.001\""


def where(frame: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows for which `condition` holds (a value that a row does not have fulfils no comparison but `!=`).

    Raises `UserError` for what cannot be read or is not allowed, for an unknown column, and where no row is left.
    """
    columns = [str(name) for name in frame if name not in NOT_ASKED]
    names: dict[str, str] = {}
    text = QUOTED.sub(lambda match: _placeholder(match, names), condition)
    for name in _names(condition, text):
        column = names.get(name, name)
        if column not in columns:
            raise UserError(unknown("--where: column", column, columns, sign=" "))
        names.setdefault(name, column)
    values = pd.DataFrame({name: frame[column] for name, column in names.items()})
    found = _evaluated(condition, text, values)
    if not isinstance(found, pd.Series) or found.dtype != bool:
        raise UserError(f"--where {condition!r} is no condition on the rows; {EXAMPLE}")
    if not found.any():
        raise UserError(f"--where {condition!r} holds for none of the {frame['cell'].nunique()} cells; there are {_known(values, names)}")
    return frame[found]


def _placeholder(match: re.Match[str], names: dict[str, str]) -> str:
    """A quoted name becomes a plain one that no column has; a text literal stays."""
    column = match["name"]
    if column is None:
        return match[0]
    names[placeholder := f"column_{len(names)}_"] = column
    return placeholder


def _names(condition: str, text: str) -> Iterator[str]:
    """The names in a condition; `UserError` where it cannot be read or holds more than a condition may."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"--where {condition!r} cannot be read ({getattr(error, 'msg', error)}); {EXAMPLE}") from error
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            what = "names with dots stand in backticks" if isinstance(node, ast.Attribute) else "comparisons of columns and values only"
            raise UserError(f"--where {condition!r} holds {type(node).__name__.lower()}, which is not allowed: {what}; {EXAMPLE}")
    yield from dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _evaluated(condition: str, text: str, values: pd.DataFrame) -> object:
    try:
        return values.eval(text.strip(), engine="python", parser="pandas", local_dict={}, global_dict={})
    except (TypeError, ValueError, SyntaxError, NotImplementedError, UndefinedVariableError, AttributeError, ArithmeticError) as error:
        raise UserError(f"--where {condition!r} cannot be evaluated ({str(error).splitlines()[0]}); {EXAMPLE}") from error


def _known(values: pd.DataFrame, names: dict[str, str]) -> str:
    """The values of the columns that were asked for."""
    shown = {names[name]: sorted(map(str, values[name].dropna().unique())) for name in values}
    return "; ".join(f"{name}: {', '.join(own[:10])}{', ...' if len(own) > 10 else ''}" for name, own in shown.items())
