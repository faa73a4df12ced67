"""Which cells that did not end well run again by themselves, and which wait for a person. Torch-free."""

from dataclasses import dataclass

from harness.config import RunConfig
from harness.outcome import Outcome

RETRIES = 3
"""How often an interrupted cell starts again within one sweep."""


@dataclass(frozen=True)
class Policy:
    """The rerun policy of one command."""

    retry: frozenset[str] = frozenset()
    """Failure classes that were asked for."""
    stale: str = "report"
    """`report`, `keep` or `rerun`: what a record of other sources is worth."""
    force: bool = False
    """Run everything again."""

    def starts(self, last: Outcome, sources: dict[str, str]) -> bool:
        """Does a cell whose last attempt failed start with the sweep? `sources`: the method's files as they are now."""
        if self.force or last.status in self.retry or last.status in ("interrupted", "skipped"):
            return True
        return (last.status == "timeout" and last.progressed) or last.sources != sources

    def again(self, outcome: Outcome, retries: int) -> bool:
        """Does an attempt that just ended start again at once, after `retries` retries in this sweep?

        Only what somebody else did to it; a time limit holds until the command is typed again.
        """
        return outcome.status == "interrupted" and retries < RETRIES


def policy_of(run: RunConfig) -> Policy:
    """The policy that the run half asks for."""
    return Policy(frozenset(run.retry), run.stale, run.force)
