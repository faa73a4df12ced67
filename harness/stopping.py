"""While cells run, SIGTERM and SIGUSR2 to the dispatcher mean what Ctrl-C means: the running cells save, then everything stops."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness import dispatch

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name))

NOTE = b"parebench: stopping, the running cells save first; the same command goes on from there\n"


@contextmanager
def stops() -> Iterator[list[int]]:
    """Handle the signals within the block; raises `KeyboardInterrupt` at its end if one came. Only a main thread can do so.

    Gives the signals that came, which grow while the block runs.
    """
    dispatch.start_again()
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, b"" if came else NOTE)  # a buffered stream must not be touched from a handler
        came.append(number)
        dispatch.stop_all()

    before: dict[int, Any] = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set outside Python, cannot be given back
    if came:
        raise KeyboardInterrupt
