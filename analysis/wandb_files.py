"""An offline run of Weights & Biases read from its `.wandb` file.

The file: 7 bytes (`:W&B`, a u16, a version byte), then blocks of 32,768 bytes as in LevelDB's log. Each piece of a record has a header of
7 bytes: crc32 over type and data (u32), length (u16), type (1 whole, 2 first, 3 middle, 4 last), little-endian. The records are
protobuf messages, which wandb's own classes decode.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAGIC, BLOCK, HEADER = b":W&B", 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """What one file holds; what was not written before a run was killed is empty."""

    id: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    """The last value of everything that was logged, and what the run noted at its end."""
    ended: bool = False


def read_run(path: Path) -> OfflineRun:
    """The run of a file, as far as it was written; `ValueError` where it is no such file or its bytes have changed."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for data in payloads(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.group = record.run.run_id, record.run.run_group
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        run.ended |= kind == "exit"
    return run


def payloads(data: bytes) -> Iterator[bytes]:
    """The records' bytes; a torn last one, of a run that was killed, is left out."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as an offline run of wandb does")
    at, parts = HEADER, []
    while at + HEADER <= len(data):
        if (rest := BLOCK - at % BLOCK) < HEADER:  # no header fits: padding
            at += rest
            continue
        crc, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + HEADER : at + HEADER + length]
        if len(piece) < length or kind == 0:
            return
        if crc != zlib.crc32(bytes([kind]) + piece):
            raise ValueError(f"its checksum at byte {at} does not fit")
        at += HEADER + length
        parts = [piece] if kind in (WHOLE, FIRST) else [*parts, piece]
        if kind in (WHOLE, LAST):
            yield b"".join(parts)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """Keys and values without wandb's own, which begin with an underscore."""
    pairs = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return {key: value for key, value in pairs.items() if not key.startswith("_")}
