"""The key-value cache of language models, which a pass over whole sequences fills for nobody."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """No cache is kept within; afterwards the configuration, which is exported with the model, says what it said."""
    config = getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    try:
        if cache is not None:
            config.use_cache = False
        yield
    finally:
        if cache is not None:
            config.use_cache = cache
