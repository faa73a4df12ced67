"""Preloaded by the server of the cells' processes and nowhere else: the server outlives the signals that ask its cells to stop.

SLURM sends SIGTERM and SIGUSR2 to every process of a job. A server that died of one would leave its cells unobserved: their
dispatcher would be told of an ending while they still save. The server's children hear the signals again from their first
instruction on.
"""

import os
import signal

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR2") if hasattr(signal, name))
SERVER = os.getpid()


def _everyone(action: signal.Handlers) -> None:
    for number in SIGNALS:
        signal.signal(number, action)


def _in_child() -> None:
    if os.getppid() == SERVER:  # what a cell forks itself keeps what the cell has set
        _everyone(signal.SIG_DFL)


_everyone(signal.SIG_IGN)
os.register_at_fork(after_in_child=_in_child)
