"""From the options of `parebench-report plot` to a figure: which records, which data, which drawing."""

import argparse
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from analysis import source
from analysis.changes import with_changes
from analysis.layout import layout
from analysis.means import with_means
from analysis.plots import critical, curves, draw_curves, draw_heat, draw_points, heat, points
from analysis.tables import table
from methods.spec import UserError

LAST = "last"
SPARSITY = "method.sparsity"


def _frame(options: argparse.Namespace, *, derived: bool = True) -> pd.DataFrame:
    """The rows that are asked for, with means and changes."""
    frame = source.frame(options)
    frame = frame[frame["variant"] != LAST]
    if derived:
        frame, _ = with_changes(with_means(frame, layout(_sweep(frame, options)).means).frame)
    frame = _only(frame, "model", options.model, "--model")
    if options.methods:
        wanted = [name.strip() for name in options.methods.split(",")]
        for name in wanted:
            if not ((frame["method"] == name) | (frame["label"] == name)).any():
                raise UserError(f"--methods {name} is in no row; there are: {', '.join(sorted(set(frame['label'])))}")
        frame = frame[frame["method"].isin(wanted) | frame["label"].isin(wanted)]
    return _only(frame, "column", options.protocol, "--protocol")


def _sweep(frame: pd.DataFrame, options: argparse.Namespace) -> str | None:
    names = set(frame["sweep"].dropna())
    return options.sweep or (names.pop() if len(names) == 1 else None)


def _only(frame: pd.DataFrame, key: str, wanted: str | None, option: str) -> pd.DataFrame:
    if wanted is None:
        return frame
    if wanted not in set(frame[key]):
        raise UserError(f"{option} {wanted} is in no row; there are: {', '.join(sorted(set(frame[key].dropna())))}")
    return frame[frame[key] == wanted]


def _pareto(options: argparse.Namespace) -> Figure:
    cost = options.x or "parameters"
    if cost not in points.COSTS:
        raise UserError(f"--x {cost} is not allowed; allowed: {', '.join(points.COSTS)}")
    return draw_points.draw(points.pareto(_frame(options), cost), options.width)


def _curve(options: argparse.Namespace) -> Figure:
    if not options.x:
        raise UserError("a curve needs the key that was swept; type --x method.r, --x recipe.lr or the like")
    return draw_curves.draw(curves.swept(_frame(options), options.x, options.y), options.width)


def _sparsity(options: argparse.Namespace) -> Figure:
    return draw_curves.draw(curves.swept(_frame(options), options.x or SPARSITY, options.y, references=True), options.width)


def _learning(options: argparse.Namespace) -> Figure:
    return draw_curves.draw(curves.learning(_frame(options, derived=False), options.store), options.width)


def _profile(options: argparse.Namespace) -> Figure:
    return draw_heat.draw(heat.profiles(_frame(options, derived=False), options.store, options.measure), options.width)


def _interference(options: argparse.Namespace) -> Figure:
    if not options.matrix:
        raise UserError("interference needs a matrix of the methods; type --matrix <file>.csv")
    return draw_heat.draw([heat.interference(heat.read_matrix(options.matrix))], options.width)


def _forgetting(options: argparse.Namespace) -> Figure:
    frame = _frame(options)
    names = sorted(set(frame["column"].dropna()))
    changes = [name for name in names if name.endswith(points.CHANGE)]
    forgot = options.x or next(iter(changes), None)
    gained = options.y or next((name for name in names if name not in changes and f"{name}{points.CHANGE}" not in changes), None)
    if not forgot or not gained:
        raise UserError("nothing was measured before training; run the cells with forgetting=[wikitext2] or another task")
    return draw_points.draw(points.forgetting(frame, forgot, gained), options.width, front=False)


def _critical(options: argparse.Namespace) -> Figure:
    frame = _frame(options, derived=False)
    found = table(frame, options.store, layout(_sweep(frame, options))).rankings
    if not found:
        raise UserError("ranks need two rows or more that were measured on two tasks or more in one form, with the same seeds")
    return critical.draw(found, options.width)


MAKERS: dict[str, Callable[[argparse.Namespace], Figure]] = {
    "pareto": _pareto, "sparsity": _sparsity, "curve": _curve, "learning": _learning, "profile": _profile,
    "critical": _critical, "interference": _interference, "forgetting": _forgetting,
}  # fmt: skip
