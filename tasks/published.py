"""What is known of the published splits, and the refusal of rows that are not them: truncated, relabelled, reordered or edited."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from methods.spec import UserError
from tasks.datasets import PARTIAL, Split, spec
from tasks.hashing import content_hash

if TYPE_CHECKING:
    import pyarrow as pa

HASHES = {
    ("glue/sst2", "validation"): "3bf23009ee1b55a4",
    ("glue/mrpc", "validation"): "f77846a8a06a0350",
    ("glue/rte", "validation"): "d00b6690453dd0cc",
    ("piqa", "validation"): "55cc2220e116ce2f",
    ("arc_easy", "validation"): "0717343c282315a1",
    ("arc_challenge", "validation"): "66513127eea40a6b",
    ("hellaswag", "validation"): "b4c1659841df4fcc",
    ("winogrande", "validation"): "9bd71701c17c69c2",
    ("boolq", "validation"): "efc5ddfb4977c6f0",
    ("social_iqa", "validation"): "0c12dbd5629dc39c",
    ("openbookqa", "validation"): "11d3e911db037921",
    ("gsm8k", "test"): "04a2ea087a60f4a5",
}
"""First 16 digits of the content hash, where two independent copies of a split agree."""
LABELS = {
    ("glue/sst2", "train"): (29780, 37569),
    ("glue/cola", "train"): (2528, 6023),
    ("glue/mrpc", "train"): (1194, 2474),
    ("glue/rte", "train"): (1249, 1241),
    ("glue/qnli", "validation"): (2702, 2761),
    ("glue/wnli", "train"): (323, 312),
    ("glue/wnli", "validation"): (40, 31),
}
"""Rows per label 0, 1, ... of the other GLUE splits."""


def check(table: pa.Table, dataset: str, split: str, path: Path | None) -> None:
    """Compare rows with what is published; `path` is None for the hub.

    Raises `UserError` unless they agree, or the file is declared to be a part: by its name (`train_partial.parquet`), or in
    `tasks/datasets.py`.
    """
    part = spec(dataset, split)[1]
    where = f"hub {spec(dataset, split)[0].hub}" if path is None else str(path)
    if path is not None and declared(path, part, table.num_rows):
        return
    if table.num_rows != part.rows:
        hint = "load another revision" if path is None else f"replace it, or call it {part.stems[0]}{PARTIAL}{''.join(path.suffixes)}"
        raise UserError(f"{where} has {table.num_rows} rows and {dataset} {split} has {part.rows} as published; {hint}")
    wrong = _wrong(table, (dataset, split))
    if wrong:
        raise UserError(f"{where} has the {part.rows} rows of {dataset} {split} but {wrong}; replace it by the published rows")


def declared(path: Path, part: Split, rows: int) -> bool:
    """Whether a file says that it is only a part of its split."""
    stem = path.name.split(".")[0]
    return stem == part.stems[0] + PARTIAL or part.partial.get(stem) == rows


def _wrong(table: pa.Table, place: tuple[str, str]) -> str:
    if place in HASHES and not (found := content_hash(table)).startswith(HASHES[place]):
        return f"other content than published (hash {found[:16]}, not {HASHES[place]}): relabelled, reordered or edited"
    if place in LABELS:
        counts = Counter(table["label"].to_pylist())
        found_labels = tuple(counts[label] for label in range(len(LABELS[place])))
        if found_labels != LABELS[place]:
            return f"{found_labels} of each label where {LABELS[place]} are published: relabelled"
    return ""
