"""The order in which a machine works through planned cells: each after those it needs, those of other sweeps last. Torch-free."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from harness import lease
from harness.outcome import Outcome
from harness.plan import DONE, LEASED, MEASURE, RUN, Planned
from harness.worker import LOST, REFUSED

POLL = 1.0
"""Seconds between two looks at a cell that another sweep runs."""
Run = Callable[[Planned], Outcome]
Stopped = Callable[[], bool]


class Schedule:
    """Which cells may start, as others end."""

    def __init__(self, cells: Sequence[Planned], ended: dict[str, Outcome] | None = None) -> None:
        self.waiting = list(cells)
        self.ended: dict[str, Outcome] = {} if ended is None else ended
        self.own = {cell.cell for cell in cells}

    def ready(self) -> Planned | None:
        """The next cell whose needs are done; None while there is none."""
        found = next((cell for cell in self.waiting if all(self._settled(need) for need in cell.needs)), None)
        if found is not None:
            self.waiting.remove(found)
        return found

    def hindrance(self, cell: Planned) -> Outcome | None:
        """Why a cell cannot run although its turn has come: one that it needs has failed, or another sweep still runs it."""
        for need in cell.needs:
            ended = self.ended.get(need.cell)
            status, why = (ended.status, ended.last_line) if ended else need.now()
            if status == LEASED:
                return Outcome(cell.cell, cell.label, LEASED, LOST, (f"it needs {need.label} ({need.cell}), which another sweep runs",))
            if status != DONE:
                why = f"{status} ({why})" if why else status
                lines = (f"it needs {need.label} ({need.cell}), which is not done: {why}",)
                return Outcome(cell.cell, cell.label, "skipped", REFUSED, lines)
        return None

    def _settled(self, need: Planned) -> bool:
        return need.cell in self.ended or need.cell not in self.own


def run_all(cells: Sequence[Planned], workers: int, run: Run, stopped: Stopped) -> Iterator[Outcome]:
    """Run all cells, `workers` at a time, and give their outcomes as they end; cells leased by others are waited for at the end.

    Once `stopped()` nothing starts; what runs is waited for.
    """
    ended: dict[str, Outcome] = {}
    turn, later = list(cells), []
    while (turn or later) and not stopped():
        for outcome in _pass(Schedule(turn, ended), workers, run, stopped):
            if outcome.status != LEASED:
                yield outcome
        later += [cell for cell in turn if cell.cell in ended and ended[cell.cell].status == LEASED]
        turn, later = _free(later)
        ended = {name: outcome for name, outcome in ended.items() if outcome.status != LEASED}
        if later and not turn and not stopped():
            time.sleep(POLL)


def _free(cells: Sequence[Planned]) -> tuple[list[Planned], list[Planned]]:
    """Cells that nobody holds and that need none which somebody holds, and the others."""
    held: dict[str, Planned] = {}
    for cell in cells:  # in order, so each comes after those that it needs
        if lease.holder(cell.folder) is not None or any(need.cell in held for need in cell.needs):
            held[cell.cell] = cell
    return [cell for cell in cells if cell.cell not in held], list(held.values())


def in_turn(cells: Sequence[Planned], run: Run, stopped: Stopped) -> tuple[Planned, Outcome]:
    """Run cells one after the other up to the first that does not end well; the last one that ran, and how it ended.

    A cell that is leased is waited for: by another sweep, or after a kill by its own process, which saves.
    """
    schedule = Schedule(cells)
    cell = schedule.ready()
    while True:
        while (outcome := _one(schedule, cell, run)).status == LEASED and not stopped():
            time.sleep(POLL)
        schedule.ended[cell.cell] = outcome
        following = schedule.ready() if outcome.status == DONE else None
        if following is None:
            return cell, outcome
        cell = following


def _pass(schedule: Schedule, workers: int, run: Run, stopped: Stopped) -> Iterator[Outcome]:
    threads = ThreadPoolExecutor(workers)
    running: set[Future[Outcome]] = set()
    try:
        while running or (schedule.waiting and not stopped()):
            while len(running) < workers and not stopped() and (cell := schedule.ready()) is not None:
                running.add(threads.submit(_one, schedule, cell, run))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                outcome = future.result()
                schedule.ended[outcome.cell] = outcome
                yield outcome
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _one(schedule: Schedule, cell: Planned, run: Run) -> Outcome:
    hindrance = schedule.hindrance(cell) if cell.state in (RUN, LEASED) and cell.way != MEASURE else None
    if hindrance is None:
        return run(cell)
    if hindrance.status != LEASED:  # that one is somebody else's to note
        hindrance.write(cell.folder)
    return hindrance
