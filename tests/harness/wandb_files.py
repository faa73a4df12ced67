"""Reads an offline run of Weights & Biases back from its `.wandb` file, independently of wandb's own reader.

The file: 7 bytes (`:W&B`, a u16, a version byte), then blocks of 32,768 bytes as in LevelDB's log. Each piece of a record has a
header of 7 bytes: crc32 over type and data (u32), length (u16), type (1 whole, 2 first, 3 middle, 4 last), all little-endian.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What one file holds."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows without wandb's own keys, in the order of the file."""
    steps: list[int] = field(default_factory=list)
    """wandb's own step of each row."""
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    """Metric (or glob) -> the metric that is its horizontal axis."""
    exit_code: int | None = None
    table: dict[str, Any] | None = None
    """The media file of the results table."""


def read_runs(folder: Path) -> dict[str, OfflineRun]:
    """The runs of the `.wandb` files below a folder, by id; asserts that none is there twice."""
    found = [read_run(path) for path in sorted(folder.rglob("*.wandb"))]
    runs = {run.id: run for run in found}
    assert len(runs) == len(found)
    return runs


def read_run(path: Path) -> OfflineRun:
    """One run."""
    run = OfflineRun()
    for record in records(path):
        _take(run, record, record.WhichOneof("record_type"))
    entry = run.summary.get("results")
    if entry:
        run.table = json.loads((path.parent / "files" / entry["path"]).read_text())
    return run


def records(path: Path) -> Iterator[Any]:
    """The protobuf records of a file; a truncated tail ends it."""
    from wandb.proto.wandb_internal_pb2 import Record

    for data in payloads(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        yield record


def payloads(data: bytes) -> Iterator[bytes]:
    """The records' bytes; `AssertionError` where a checksum is wrong."""
    assert data[:4] == b":W&B", data[:HEADER]
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that holds no header is padding
            at += BLOCK - at % BLOCK
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + HEADER : at + HEADER + length]
        if len(piece) < length or kind == 0:
            return
        assert crc == zlib.crc32(bytes([kind]) + piece), f"checksum at byte {at}"
        at += HEADER + length
        parts = [piece] if kind in (WHOLE, FIRST) else [*parts, piece]
        if kind in (WHOLE, LAST):
            yield b"".join(parts)


def _take(run: OfflineRun, record: Any, kind: str) -> None:
    if kind == "run":
        one = record.run
        run.id, run.name, run.group, run.job_type, run.project = one.run_id, one.display_name, one.run_group, one.job_type, one.project
        run.tags = tuple(one.tags)
        run.config |= _values(one.config.update)
    elif kind == "config":
        run.config |= _values(record.config.update)
    elif kind == "summary":
        run.summary |= _values(record.summary.update)
    elif kind == "history":
        run.history.append(_values(record.history.item))
        run.steps.append(record.history.step.num)
    elif kind == "metric":
        run.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _values(items: Any) -> dict[str, Any]:
    """Keys and decoded values, without those that wandb adds by itself (they begin with an underscore)."""
    pairs = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return {key: value for key, value in pairs.items() if not key.startswith("_")}
