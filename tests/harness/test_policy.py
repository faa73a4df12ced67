"""The rerun policy as a table: which failed cell starts with a sweep, and which attempt starts again at once."""

import pytest

from harness.config import FAILURES
from harness.outcome import Outcome
from harness.policy import RETRIES, Policy

SAME, OTHER = {"methods/a.py": "1"}, {"methods/a.py": "2"}


def ended(status: str, progressed: bool = False) -> Outcome:
    """An attempt of the sources `SAME`."""
    return Outcome("c", "l", status, 1, progressed=progressed, sources=SAME)


STARTS = {
    # status: (as it is, with progress, other sources, asked for, forced)
    "oom": (False, False, True, True, True),
    "diverged": (False, False, True, True, True),
    "error": (False, False, True, True, True),
    "disk_full": (False, False, True, True, True),
    "timeout": (False, True, True, True, True),
    "interrupted": (True, True, True, True, True),
    "skipped": (True, True, True, None, True),
}


def test_the_table_has_every_failure() -> None:
    assert set(STARTS) == {*FAILURES, "skipped"}


@pytest.mark.parametrize(("status", "expected"), STARTS.items())
def test_which_failed_cells_start_with_the_sweep(status: str, expected: tuple[bool | None, ...]) -> None:
    plain, progressed, other, asked, forced = expected
    assert Policy().starts(ended(status), SAME) is plain
    assert Policy().starts(ended(status, progressed=True), SAME) is progressed
    assert Policy().starts(ended(status), OTHER) is other
    if asked is not None:
        assert Policy(retry=frozenset({status})).starts(ended(status), SAME) is asked
    assert Policy(force=True).starts(ended(status), SAME) is forced


@pytest.mark.parametrize("status", ["oom", "diverged", "error", "disk_full", "timeout"])
def test_asking_for_one_class_starts_no_other(status: str) -> None:
    others = frozenset(FAILURES) - {status}
    assert not Policy(retry=others).starts(ended(status), SAME)


@pytest.mark.parametrize("status", [*FAILURES, "done", "skipped", "leased"])
def test_only_an_interrupted_attempt_starts_again_at_once_and_not_for_ever(status: str) -> None:
    policy = Policy(retry=frozenset(FAILURES), force=True)
    again = [policy.again(ended(status, progressed=True), retries) for retries in range(RETRIES + 1)]
    assert again == [status == "interrupted"] * RETRIES + [False]
