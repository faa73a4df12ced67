"""SIMULATED records for the tests of `analysis`. Nothing here was measured, and nothing of it leaves the tests."""

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.record import SCHEMA, Phase, Record, Result
from harness.store import Store

N = 200
ROWS = {"dataset": "simulated/set", "split": "validation", "rows": N, "source": "folder", "revision": "local", "sha256": "5eed" * 16}
NUMERICS = {"harness": 1, "python": "3.11.0", "packages": {"torch": "2.13.0"}, "device": "cpu", "threads": 1, "precision": "float32"}


def scores(method: str, seed: int, accuracy: float, n: int = N) -> pd.DataFrame:
    """0/1 scores with exactly round(n * accuracy) ones, easier examples more often right."""
    rng = np.random.default_rng([seed, *map(ord, method)])
    hard = np.linspace(0, 1, n) + rng.normal(0, 0.15, n)
    right = np.zeros(n)
    right[np.argsort(hard)[: round(n * accuracy)]] = 1
    label = np.arange(n) % 2
    return pd.DataFrame(
        {"example": [f"doc{i}" for i in range(n)], "score": right, "label": label, "prediction": np.where(right == 1, label, 1 - label)}
    )


def record(
    store: Path, cell: str, method: str, seed: int, predictions: pd.DataFrame, *, value: float | None = None, metric: str = "accuracy",
    model: str = "toy", task: str = "toy/a", protocol: str = "toy/a@heldout", config: dict | None = None, recipe: dict | None = None,
    deterministic: bool = False, note: str = "", sweep: str | None = "simulated", trainable: int = 1000, higher: bool = True,
    variant: str = "main", rows: dict | None = None, numerics: dict | None = None, budget: str = "short", tokenizer: str = "",
    train: dict | None = None, origin: str | None = None, examples: int | None = None,
) -> Record:  # fmt: skip
    """Write one simulated record with its predictions."""
    value = float(predictions["score"].mean()) if value is None else value
    file = f"evals/{cell}.parquet"
    result = Result(
        protocol=protocol, variant=variant, metrics={metric: value}, primary=metric, higher_is_better=higher, n=len(predictions),
        rows=rows or ROWS, predictions=file, version=1, seconds=1.0, tokenizer=tokenizer,
    )  # fmt: skip
    identity = {
        "method": {"name": method, **(config or {})}, "model": {"name": model}, "task": {"name": task},
        "budget": {"name": budget, **({"examples": examples} if examples else {})}, "recipe": {"lr": 0.001} if recipe is None else recipe,
        "precision": "float32",
    }  # fmt: skip
    costs = {
        "parameters": {"total": 100_000, "trainable": trainable + 50, "trainable_method": trainable, "trainable_head": 50, "head": 50},
        "sparsity": {"prunable": 0.0, "all": 0.0}, "bytes": 400_000, "changed": {"bytes": 4 * trainable + 200}, "flops": {"training": 1e9},
    }  # fmt: skip
    made = Record(
        schema=SCHEMA, cell=cell, status="done", identity=identity, origins={"lr": origin} if origin else {}, sweep=sweep, seed=seed,
        deterministic=deterministic, model_note=note, results=[result], selection={}, costs=costs,
        phases=[Phase("main", 10, 320, 4000, 8.0, 10**9, 0)], measures={},
        data={"evaluation": ROWS} | ({"train": train} if train else {}), numerics=numerics or NUMERICS, sources={}, seconds=10.0,
    )  # fmt: skip
    path = Store(store).folder(cell) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    predictions.to_parquet(path)
    Store(store).write(made)
    return made


def grid(root: Path, methods: int, models: int, tasks: int, seeds: int, gain: float) -> Iterator[str]:
    """Write a record per cell of a grid without waiting for the disk, `gain` of accuracy per method, and yield the cell it is of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for number, (method, model, task, seed) in enumerate(product(range(methods), range(models), range(tasks), range(seeds))):
            predictions = scores(f"{method} {model} {task}", seed, 0.6 + gain * method + 0.01 * task)
            cell, name = f"{number:012x}", f"toy/{task}"
            record(
                root, cell, f"method{method}", seed, predictions, model=f"model{model}", task=name, protocol=f"{name}@heldout",
                config={"r": 8}, trainable=10 ** (2 + method % 5) + method,
            )  # fmt: skip
            yield cell


def failure(
    store: Path, cell: str, method: str, seed: int, kind: str = "diverged", line: str = "the loss is not finite", task: str = "toy/a"
) -> None:
    """Write the outcome of one simulated cell that failed."""
    folder = Store(store).folder(cell)
    folder.mkdir(parents=True)
    config = {
        "method": {"name": method, "recipes": []}, "model": {"name": "toy"}, "task": {"name": task}, "budget": {"name": "short"},
        "recipe": {"lr": None}, "seed": seed, "precision": "float32", "run": {"sweep": "simulated", "store": "somewhere"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "outcome.json").write_text(json.dumps({"cell": cell, "status": kind, "code": 4, "lines": ["first", line], "seconds": 1.0}))


def small_store(root: Path) -> Path:
    """A store with two good methods that are alike, a clearly worse one, a control without seeds, and one that fails once."""
    accuracies = {"full_ft": (0.85, 0.86, 0.84), "lora": (0.85, 0.84, 0.85), "linear_probe": (0.60, 0.61, 0.60)}
    trainable = {"full_ft": 99_950, "lora": 3_000, "linear_probe": 0}
    for method, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            config = {"r": 8} if method == "lora" else {}
            predictions = scores(method, seed, accuracy)
            record(root, f"{method}{seed}", method, seed, predictions, config=config, trainable=trainable[method], note="a toy & more")
    record(root, "none0", "none", 0, scores("none", 0, 0.5), deterministic=True, trainable=0, recipe={})
    for seed in (0, 1):
        record(root, f"bitfit{seed}", "bitfit", seed, scores("bitfit", seed, 0.9), trainable=500)
    failure(root, "bitfit2", "bitfit", 2)
    return root
