"""Composing a configuration in Python, as the command line would. Torch-free."""

from collections.abc import Sequence
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration under `overrides` as plain values, Hydra's own part left out."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides))
    return {str(key): value for key, value in OmegaConf.to_container(cfg, resolve=True).items()}
