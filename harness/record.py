"""What a finished cell leaves behind. Torch-free; `analysis` reads exactly this."""

from dataclasses import asdict, dataclass
from typing import Any

SCHEMA = 1
NUMERICS = 1
"""Bumped when a change of the harness moves losses or metrics (a golden-loss test guards it)."""


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


@dataclass
class Phase:
    """One metered stretch of work: a training phase, a probe fit, an evaluation."""

    name: str
    steps: int
    examples: int
    tokens: int
    seconds: float
    peak_rss: int
    """Peak resident memory in bytes while the phase ran."""
    peak_device: int
    """Peak allocated accelerator memory in bytes; 0 on CPU."""


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
    """Where each recipe value came from: paper, tuned, default, override."""
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def from_json(data: dict[str, Any]) -> Record:
    """A record from its JSON; raises `TypeError` on a schema this version does not know."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise TypeError(f"record schema {schema} is not {SCHEMA}")
    results = [Result(**r) for r in data["results"]]
    phases = [Phase(**p) for p in data["phases"]]
    return Record(**{**data, "results": results, "phases": phases})
