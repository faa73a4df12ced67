"""A flag that a signal handler may set."""


class Flag:
    """Like `threading.Event`, without waiting and without its lock.

    A second signal may come while the first one's handler is inside `Event.set`, and its own `set` would then wait for that
    lock for ever: SLURM signals every process of a job, and the dispatcher passes the signal on, so two come at once.
    """

    def __init__(self) -> None:
        self._up = False

    def set(self) -> None:
        """Raise it."""
        self._up = True

    def clear(self) -> None:
        """Lower it."""
        self._up = False

    def is_set(self) -> bool:
        """Is it raised?"""
        return self._up
