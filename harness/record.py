"""What a finished cell leaves behind. Torch-free; `analysis` reads exactly this."""

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
NUMERICS = 1
"""Bumped when a change of the harness moves losses or metrics (a golden-loss test guards it)."""

LATER = ("task", "numerics")
"""Fields of a result that came later: where they say nothing they are not written, so that an old result stays as it is."""


@dataclass
class Result:
    """One protocol measured on one variant of the finalized model."""

    protocol: str
    """Exactly how the number was made, for instance `glue/sst2@heldout` or `piqa@loglikelihood[:300]`."""
    variant: str
    """`main` unless the method yields several models."""
    metrics: dict[str, float]
    primary: str
    """Key of `metrics` that tables show."""
    higher_is_better: bool
    n: int
    """Examples (windows for perplexity)."""
    rows: dict[str, Any]
    """`tasks.base.Rows.describe()` of the evaluated rows."""
    predictions: str
    """Parquet file of per-example predictions, relative to the cell's folder; columns `example` (document hash),
    `score`, and where they exist `label`, `prediction`, log-likelihoods, `nll`, `tokens`."""
    version: int
    """Version of the protocol."""
    seconds: float
    task: str = ""
    """Name of the task that it is a protocol of; empty in records from before there was more than the cell's own."""
    numerics: dict[str, Any] = field(default_factory=dict)
    """What it was measured with, where it was added later and that differs from the record's."""
    tokenizer: str = ""
    """Hash of the tokenizer where the metrics count its tokens (perplexity); else empty."""


@dataclass
class Phase:
    """One metered stretch of work: a training phase, a probe fit, an evaluation."""

    name: str
    steps: int
    examples: int
    tokens: int
    seconds: float
    peak_rss: int
    """Peak resident memory in bytes while the phase ran; of the first process, where several trained."""
    peak_device: int
    """Peak allocated accelerator memory in bytes, likewise; 0 on CPU."""


@dataclass
class Record:
    """A finished cell. `record.json` is this, written last and atomically."""

    schema: int
    cell: str
    """The cell id."""
    status: str
    """`done`; failed cells have no record but an `outcome.json` with their class and last lines."""
    identity: dict[str, Any]
    """The canonical cell half that was hashed: method, model, task, budget, recipe, seed, precision, data, weights."""
    origins: dict[str, str]
    """Where each recipe value came from: paper, tuned, default, override.

    `method.<key>`: what the key was solved to match, such as `match_params:300k`."""
    sweep: str | None
    seed: int
    deterministic: bool
    """True where no seed can change the numbers: tables print `det.` instead of a spread."""
    model_note: str
    results: list[Result]
    selection: dict[str, Any]
    """Rule, chosen step, its metric on the selection rows, last step."""
    costs: dict[str, Any]
    """See `harness/cost.py`: parameters, nonzero, bytes, memory, flops, latency."""
    phases: list[Phase]
    measures: dict[str, Any]
    """What only the method knows (`Method.measure`)."""
    data: dict[str, Any]
    """`Rows.describe()` per split."""
    numerics: dict[str, Any]
    """Versions, device, threads, precision, `NUMERICS`."""
    sources: dict[str, str]
    """Hash of each source file the method consists of; their texts are kept in the store by hash."""
    seconds: float
    attempts: int = 1
    files: dict[str, list[Any]] = field(default_factory=dict)
    """Path in the cell's folder -> [bytes, sha256] of what the record vouches for; filled by `Store.write`."""
    dependencies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> `cell` (id), `checksum` (of the record) and `weights` of the cells that this one was made from."""
    weights: str = ""
    """sha256 over the exported weight files, kept or not: what cells that are made from this one read."""
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> task configuration of the protocols that it was measured on beside its own task."""
    remade: dict[str, Any] = field(default_factory=dict)
    """Where its weights were lost and it was made again: the folder it `replaces` under `.replaced/`, and what `differs` in how."""
    checksum: str = ""
    """sha256 of the record's text with this value empty; filled by `Store.write`."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        results = [{key: value for key, value in result.items() if value or key not in LATER} for result in map(asdict, self.results)]
        return asdict(self) | {"results": results}


def from_json(data: dict[str, Any]) -> Record:
    """A record from its JSON; raises `TypeError` on a schema this version does not know."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise TypeError(f"record schema {schema} is not {SCHEMA}")
    results = [Result(**r) for r in data["results"]]
    phases = [Phase(**p) for p in data["phases"]]
    return Record(**{**data, "results": results, "phases": phases})
