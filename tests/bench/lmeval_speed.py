"""Our log-likelihood tasks against lm-eval's own: the same model, rows and batch size, taking turns in one run.

    python tests/bench/lmeval_speed.py [--model smollm2|<folder>] [--task arc_easy] [--examples 64] [--batch 8] [--turns 3] [--cli]

Evaluation alone is timed in this process (`simple_evaluate` on lm-eval's stock definition, as its command line calls it). With `--cli`
whole commands are timed as well: lm-eval's command line, and a new interpreter that imports, loads and evaluates our task. Prints the
ratios lm-eval / ours: above 1 ours is faster. Needs the local data folder.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from harness.assets import model_folder
from tasks.base import EvalOptions
from tasks.choice import Choice
from tasks.sources import Sources
from tasks.spec import ChoiceConfig

ROOT = Path(__file__).resolve().parents[2]
STOCK = {"arc_easy": "arc/arc_easy", "piqa": "piqa/piqa", "hellaswag": "hellaswag/hellaswag", "openbookqa": "openbookqa/openbookqa"}
OURS = (
    "import sys; from pathlib import Path; sys.path.insert(0, {root!r}); from tests.bench import lmeval_speed as bench; "
    "bench.ours(*bench.load(Path({model!r})), bench.task({task!r}, {examples}), {batch})()"
)


def data_folder() -> Path:
    """Where the rows are."""
    return Path(os.environ.get("PAREBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


def task(dataset: str, examples: int) -> Choice:
    """Our task on the first rows."""
    split = "test" if dataset in ("arc_easy", "openbookqa") else "validation"
    config = ChoiceConfig(f"commonsense/{dataset}", "choice", dataset, "accuracy", split, examples, 1)
    return Choice(config, Sources(data_folder(), ROOT / "assets", offline=True))


def ours(model: Any, tokenizer: Any, asked: Choice, batch: int) -> Callable[[], list[float]]:
    """Evaluates our task; the score of each example."""
    return lambda: asked.evaluate(model, tokenizer, "evaluation", EvalOptions(batch)).predictions["score"]


def definition(dataset: str, rows: Any, work: Path) -> str:
    """lm-eval's stock definition on these rows, in a folder of its own; its name."""
    import lm_eval

    rows.to_parquet(work / "rows.parquet")
    files = {"data_files": {"validation": str(work / "rows.parquet")}, "cache_dir": str(work / "cache")}
    place = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": files, "tag": "local"}
    splits = {"training_split": None, "validation_split": "validation", "test_split": None}
    stock = Path(lm_eval.__file__).parent / "tasks" / f"{STOCK[dataset]}.yaml"
    (work / "local.yaml").write_text(yaml.safe_dump({"include": str(stock), "task": f"local_{dataset}", **place, **splits}))
    return f"local_{dataset}"


def theirs(model: Any, tokenizer: Any, name: str, work: Path, batch: int) -> Callable[[], list[float]]:
    """Evaluates lm-eval's definition, loaded anew each time as ours is; the score of each example."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    manager = TaskManager(include_path=str(work), include_defaults=False)

    def evaluate() -> list[float]:
        out = simple_evaluate(model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0)
        return [sample["acc"] for sample in sorted(out["samples"][name], key=lambda sample: sample["doc_id"])]

    return evaluate


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of one call, and what it gave."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def commands(folder: Path, name: str, work: Path, asked: argparse.Namespace) -> tuple[list[str], list[str]]:
    """lm-eval's command line, and a new interpreter that does the same with our task."""
    model = f"pretrained={folder},dtype=float32"
    theirs = ["-m", "lm_eval", "run", "--model", "hf", "--model_args", model, "--tasks", name, "--include_path", str(work)]
    theirs += ["--batch_size", str(asked.batch), "--device", "cpu"]
    code = OURS.format(root=str(ROOT), model=str(folder), task=asked.task, examples=asked.examples, batch=asked.batch)
    return [sys.executable, *theirs], [sys.executable, "-c", code]


def main() -> None:
    """Print the median ratio of evaluation, and of whole commands where asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for key, value in (("--model", "smollm2"), ("--task", "arc_easy"), ("--examples", 64), ("--batch", 8), ("--turns", 3)):
        parser.add_argument(key, type=type(value), default=value)
    parser.add_argument("--cli", action="store_true")
    asked, console = parser.parse_args(), Console()
    assets = Path(os.environ.get("PAREBENCH_ASSETS", ROOT / "assets"))
    folder = model_folder("smollm2_135m", assets) if asked.model == "smollm2" else Path(asked.model)
    model, tokenizer = load(folder)
    own = task(asked.task, asked.examples)
    with tempfile.TemporaryDirectory() as work:
        name = definition(asked.task, own.splits()["evaluation"].data, Path(work))
        runs = (theirs(model, tokenizer, name, Path(work), asked.batch), ours(model, tokenizer, own, asked.batch))
        turns = [[seconds(run) for run in runs] for _ in range(asked.turns)]
        ratio = statistics.median(a[0] / b[0] for a, b in turns)
        equal = sum(a == b for a, b in zip(turns[0][0][1], turns[0][1][1], strict=True))
        best = [min(turn[i][0] for turn in turns) for i in range(2)]
        times = f"lm-eval {best[0]:.2f} s, ours {best[1]:.2f} s, ratio {ratio:.2f}"
        console.print(f"evaluation: {times}; {equal} of {asked.examples} scores equal")
        if asked.cli:
            quiet = {"check": True, "capture_output": True, "env": os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}}
            walls = [seconds(lambda line=line: subprocess.run(line, **quiet))[0] for line in commands(folder, name, Path(work), asked)]
            console.print(f"whole commands: lm-eval {walls[0]:.1f} s, ours {walls[1]:.1f} s, ratio {walls[0] / walls[1]:.2f}")


if __name__ == "__main__":
    main()
