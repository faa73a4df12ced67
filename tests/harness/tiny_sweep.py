"""A real sweep of six cells that takes seconds: three methods on a tiny model, one cell of which diverges."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from harness.cli import run

TINY = ["model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke", "precision=float32", "run.device=cpu", "recipe.batch=8"]
SIX = 'hydra.sweeper.grids=[{method: lora, seed: "0,1,2"}, {method: magnitude, seed: "0,1"}, {method: full_ft, recipe.lr: "1e30"}]'


def sweep(store: Path, data: Path, *argv: str) -> tuple[int, str]:
    """`parebench -m` on tiny cells; the exit code and what it wrote to standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run(["-m", *TINY, f"run.store={store}", f"data_dir={data}", *argv])
    return code, said.getvalue()


def refuse_wandb() -> None:
    """Fails where this process has imported wandb."""
    assert "wandb" not in sys.modules


def warnings(said: str) -> list[str]:
    """The lines that warn."""
    return [line for line in said.splitlines() if "warning" in line]


def cells(store: Path) -> dict[str, dict[str, Any]]:
    """`record.json`, else `outcome.json`, of every cell."""
    folders = [path for path in store.iterdir() if (path / "config.json").exists()]
    return {f.name: json.loads(next(f / n for n in ("record.json", "outcome.json") if (f / n).exists()).read_text()) for f in folders}
