"""A cell that is stopped and started again ends bit for bit alike while masks and indices change: through the harness's checkpoints."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from harness import cell as spine
from harness import guard
from tests.contract.toy import write_toy_data
from tests.contract.trial import Trial, stable, stopping_after, tensors_of

CASES = {
    "lift refreshed before and after the stop": ("lift", ("method.interval=2", "method.r=2", "method.filter_rank=2")),
    "spiel ag stopped within an accumulation": ("spiel", ("method.interval=4", "method.accumulation=3")),
    "spiel ag that chooses before and after": ("spiel", ("method.interval=2", "method.accumulation=1")),
    "spiel ma": ("spiel", ("method.growth=ma", "method.interval=2", "method.accumulation=1")),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_straight(case: str, tmp_path: Path) -> None:
    method, options = CASES[case]
    trial = Trial(method, "tiny_llama", tmp_path, write_toy_data(tmp_path / "data"))
    straight = trial.run("straight", *options)
    container = trial.container("resumed", *options)
    with stopping_after(2), suppress(guard.Interrupted):
        spine.run_cell(container)
    assert not (trial.folder(container) / "unsealed.json").exists()
    resumed = trial.run("resumed", *options)
    first, second = tensors_of(straight), tensors_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert stable(trial.record(straight)) == stable(trial.record(resumed))
    other = tensors_of(trial.run("unmoved", *(o for o in options if "interval" not in o and "accumulation" not in o)))
    assert any(not torch.equal(first[name], other[name]) for name in first)  # the interval matters, so something moved
