"""A sweep killed with SIGKILL at random moments and started again each time, against the same sweep left alone.

    python -m tests.bench.kill_sweep --cells 24 --kills 20 --seed 0

Prints one JSON line; exit code 1 unless every record equals the uninterrupted one and no finished cell ran again.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from harness.store import Store
from tests.contract.toy import write_toy_data
from tests.killing import Fire, command, kept, ran_again, start

METHODS = ("lora", "full_ft", "bitfit", "magnitude", "dora", "ia3")
MODELS = ("tiny_bert", "tiny_gpt2")


def main() -> int:
    """Run both sweeps and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="a multiple of 12")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--folder", type=Path, help="where both stores stay; without it they are deleted")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        found = trial(given.folder or Path(aside), given.cells, given.kills, given.seed)
    sys.stdout.write(json.dumps(found, sort_keys=True) + "\n")
    return int(not found["survived"])


def trial(folder: Path, cells: int, kills: int, seed: int) -> dict[str, object]:
    """Both sweeps in `folder`: what was killed, and whether it shows."""
    grid = overrides(write_toy_data(folder / "data"), cells // (len(METHODS) * len(MODELS)))
    calm, began = Store(folder / "calm"), time.monotonic()
    first = start(command(calm.root, *grid), folder / "calm.log").wait()
    calm_seconds = time.monotonic() - began
    fire = Fire(command(folder / "fire", *grid), Store(folder / "fire"), random.Random(seed))
    code = fire.run(kills)
    expected, found = kept(calm), kept(fire.store)
    unequal = sorted(cell for cell in expected if found.get(cell) != expected[cell])
    again = sorted({*fire.changed(), *ran_again(fire.store)})
    return {
        "cells": len(expected), "records": len(found), "kills": sum(fire.landed.values()), "landed": dict(fire.landed),
        "starts": fire.starts, "attempts": sum(record.attempts for record in fire.store.records()), "exit": code,
        "unequal": unequal, "ran_again": again, "seconds": round(time.monotonic() - began), "calm_seconds": round(calm_seconds),
        "survived": len(expected) == cells == len(found) and not unequal and not again and first == code == 0,
    }  # fmt: skip


def overrides(data: Path, seeds: int) -> list[str]:
    """The grid: each cell trains 300 steps with a checkpoint every 10 and 5 evaluations on held-out rows."""
    short = ["budget=smoke", "budget.examples=1200", "budget.evaluations=5", "recipe.batch=4", "recipe.lr=1e-3", "run.checkpoint_steps=10"]
    axes = [f"method={','.join(METHODS)}", f"model={','.join(MODELS)}", f"seed={','.join(map(str, range(seeds)))}"]
    return [*axes, "task=glue/sst2", "task.max_length=32", f"data_dir={data}", *short, "hydra.launcher.workers=2"]


if __name__ == "__main__":
    sys.exit(main())
