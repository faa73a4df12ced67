"""A small local data folder in hub columns, so that every method trains on every tiny model without a network."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GOOD, BAD = ["great", "fine", "lovely", "warm"], ["awful", "poor", "dull", "cold"]
FILLER = ["a", "film", "story", "with", "some", "plot", "and", "music"]


def write_toy_data(folder: Path) -> Path:
    """SST-2-shaped rows (sentence, label, idx), WikiText-shaped text and BoolQ's passages under the layout of `tasks/datasets.py`."""
    draws = random.Random(0)
    _parquet(folder / "glue/sst2/train_partial.parquet", _sentences(draws, 160))
    _parquet(folder / "glue/sst2/validation_partial.parquet", _sentences(draws, 48))
    text = [" ".join(draws.choices(FILLER + GOOD + BAD, k=12)) for _ in range(40)]
    _parquet(folder / "wikitext/wikitext-2-raw-v1/test_partial.parquet", {"text": text})
    passages = [" ".join(draws.choices(FILLER + GOOD + BAD, k=40)) for _ in range(12)]
    _parquet(folder / "commonsense_hub/boolq/train_partial.parquet", {"question": passages, "answer": [True] * 12, "passage": passages})
    return folder


def _sentences(draws: random.Random, n: int) -> dict[str, list]:
    labels = [draws.randrange(2) for _ in range(n)]
    words = [[*draws.choices(FILLER, k=4), draws.choice(GOOD if label else BAD)] for label in labels]
    return {"sentence": [" ".join(draws.sample(w, len(w))) for w in words], "label": labels, "idx": list(range(n))}


def _parquet(path: Path, columns: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
