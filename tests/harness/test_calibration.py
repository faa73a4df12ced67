"""The calibration block: part of a cell only where the method looks at such text, refused where it cannot be used."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import compat
from harness.config import CalibrationConfig
from harness.context import CellContext
from harness.identity import canonical_half, deterministic, digest, identify
from harness.resolve import Resolved, _calibration
from methods.spec import Traits, UserError
from tasks.calibration import SOURCES, draw, ids_hash
from tasks.spec import ChoiceConfig, PerplexityConfig
from tests.harness.test_identity import MODEL, RUN, make

LOOKS = Traits(trains=False, families=("decoder",), calibration=True)
DECODER = replace(MODEL, family="decoder", max_length=512, source="config")
TASK = PerplexityConfig("wikitext2", "perplexity", "wikitext2", "test", 128, 2, 1)
DRAWN = CalibrationConfig("wikitext2", 4, 64, None)


def cell(calibration: CalibrationConfig | None, traits: Traits = LOOKS, seed: int = 0) -> Resolved:
    return make(traits, model=DECODER, task=TASK, calibration=calibration, seed=seed)


def cell_id(resolved: Resolved) -> str:
    return digest(canonical_half(resolved, "sha256:00", {}))


def test_every_value_of_the_block_counts() -> None:
    others = [replace(DRAWN, source="c4"), replace(DRAWN, sequences=5), replace(DRAWN, length=32), replace(DRAWN, seed=1)]
    assert len({cell_id(cell(other)) for other in (DRAWN, *others)}) == 5


def test_a_method_without_the_trait_has_the_id_it_always_had() -> None:
    assert "calibration" not in canonical_half(make(), "sha256:00", {})
    assert _calibration({"source": "c4"}, Traits(), DECODER, TASK) is None


def test_the_cells_seed_counts_until_the_draw_has_its_own() -> None:
    assert not deterministic(cell(DRAWN)) and cell_id(cell(DRAWN, seed=1)) != cell_id(cell(DRAWN))
    fixed = replace(DRAWN, seed=0)
    assert deterministic(cell(fixed)) and cell_id(cell(fixed, seed=1)) == cell_id(cell(fixed))
    assert deterministic(cell(fixed, replace(LOOKS, randomness=("calibration",))))
    assert not deterministic(cell(fixed, replace(LOOKS, randomness=("mask",))))


def test_the_length_is_the_models_where_none_is_given() -> None:
    assert _calibration({}, LOOKS, DECODER, TASK).length == 512
    assert _calibration({}, LOOKS, replace(DECODER, max_length=8192), TASK).length == 2048
    reason = compat.incompatible(cell(replace(DRAWN, length=513)))
    assert reason == "calibration.length=513 is longer than m takes; give calibration.length of at most 512"


def test_test_splits_and_measured_text_are_refused() -> None:
    with pytest.raises(UserError, match=r"calibration\.source=wikitext2:test names a split, and each text has its own"):
        CalibrationConfig("wikitext2:test")
    with pytest.raises(UserError, match=r"calibration\.source=pile is not allowed; allowed: c4, wikitext2, boolq_passages, wiki"):
        CalibrationConfig("pile")
    measured = ChoiceConfig("commonsense/boolq", "choice", "boolq", "accuracy", "train", None, 1)
    with pytest.raises(UserError, match="is the text that task commonsense/boolq is measured on"):
        _calibration({"source": "boolq_passages"}, LOOKS, DECODER, measured)
    with pytest.raises(UserError, match=r"calibration\.lenght is unknown; did you mean calibration\.length"):
        _calibration({"lenght": 3}, LOOKS, DECODER, TASK)


@dataclass
class Rows:
    """What the service asks of the sources."""

    data: dict[str, list[str]]

    def describe(self) -> dict[str, str]:
        return {"dataset": "wikitext2", "split": "train"}


def test_the_context_gives_the_drawn_ids_and_notes_their_hash() -> None:
    documents = [f"line {i} of the text" for i in range(100)]
    ctx = CellContext.__new__(CellContext)
    ctx.config, ctx.seed, ctx.calibrated, ctx._calibration = cell(DRAWN).cell, 0, {}, None
    ctx.task = SimpleNamespace(sources=SimpleNamespace(rows=lambda *place: Rows({"text": documents})))
    ctx.tokenizer = lambda text, **_: {"input_ids": list(text.encode())}
    ids = ctx.calibration()
    expected = draw(documents, lambda text: list(text.encode()), SOURCES["wikitext2"], 4, 64, 0)
    assert ids.shape == (4, 64) and ids.dtype == torch.int64 and ids.tolist() == expected
    assert ctx.calibrated == {"dataset": "wikitext2", "split": "train", "sequences": 4, "length": 64, "ids_sha256": ids_hash(expected)}
    assert ctx.calibration() is ids


def test_the_source_text_counts_by_content(shared_data: Path, tmp_path: Path) -> None:
    """BoolQ's training rows from the local folder are in the identity, by hash."""
    calibration = CalibrationConfig("boolq_passages", 4, 64, 0)
    run = replace(RUN, assets=str(tmp_path))
    resolved = replace(make(LOOKS, run=run, method="none", model=DECODER, task=TASK, calibration=calibration), data_dir=shared_data)
    resolved.traits = LOOKS
    canonical = identify(resolved).canonical
    assert canonical["calibration"] == {"source": "boolq_passages", "sequences": 4, "length": 64, "seed": 0}
    assert canonical["data"]["calibration"].startswith("c5d1783534aca343")
