"""Where a report takes its records from, and which of them: the options that its subcommands share."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from analysis import wandb_source
from analysis.load import load
from methods.spec import UserError

Run = Callable[[argparse.Namespace], int | None]


def add(command: argparse.ArgumentParser, run: Run, *, rows: bool = True, mirrored: bool = True) -> None:
    """Declare the options of a subcommand that reads records, and what runs it.

    `rows`: it can be asked for some rows only; `mirrored`: it can read Weights & Biases instead of a store.
    """
    command.add_argument("--store", type=Path, default=Path("runs"), help="folder of the records (default: runs)")
    if rows:
        command.add_argument(
            "--where", metavar="CONDITION", help="only rows for which it holds: \"method == 'lora' and `recipe.lr` < 0.001\""
        )
    if mirrored:
        either = command.add_mutually_exclusive_group()
        either.add_argument("--wandb-dir", type=Path, metavar="FOLDER", help="read the offline runs of W&B below this folder instead")
        either.add_argument("--wandb", metavar="ENTITY/PROJECT", help="read the runs of this W&B project instead")
    command.set_defaults(run=partial(_with_store, run) if mirrored else run)


def frame(options: argparse.Namespace) -> pd.DataFrame:
    """The rows that the options ask for."""
    return load(options.store, options.sweep, options.where)


def home(options: argparse.Namespace) -> Path:
    """Where a file goes that no `--out` places: the store, or the current folder where W&B is read."""
    return Path() if options.wandb or options.wandb_dir else options.store


def _with_store(run: Run, options: argparse.Namespace) -> int | None:
    with _store(options) as store:
        options.store = store
        return run(options)


@contextmanager
def _store(options: argparse.Namespace) -> Iterator[Path]:
    """The store, remade in a temporary folder where W&B is read."""
    if not (options.wandb or options.wandb_dir):
        yield options.store
        return
    if options.wandb and options.wandb.count("/") != 1:
        raise UserError(f"--wandb {options.wandb} is not allowed; write --wandb <entity>/<project>")
    with TemporaryDirectory(prefix="parebench-") as folder:
        read = wandb_source.online(options.wandb, options.sweep) if options.wandb else wandb_source.offline(options.wandb_dir)
        wandb_source.rebuild(read, Path(folder))
        yield Path(folder)
