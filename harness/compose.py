"""Composing a configuration in Python, as the command line would. Torch-free."""

import copy
from collections.abc import Sequence
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from harness.resolve import TOP, without_hydra


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration under `overrides` as plain values, Hydra's own part left out."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        cfg = hydra.compose("config", overrides=list(overrides))
    return {str(key): value for key, value in OmegaConf.to_container(cfg, resolve=True).items()}


class Compositions:
    """Composes the cells of a sweep. Cells that differ in plain values only share Hydra's work, which is nearly all of it."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self.shared: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration of one cell, without Hydra's own block; Hydra's exceptions on a bad override."""
        parsed = self.parser.parse_overrides(list(overrides))
        choices = tuple(override.input_line for override in parsed if not self._is_value(override))
        if choices not in self.shared:
            self.shared[choices] = without_hydra(self.loader.load_sweep_config(self.master, list(choices)))
        cfg = copy.deepcopy(self.shared[choices])
        self.loader._apply_overrides_to_config([override for override in parsed if self._is_value(override)], cfg)
        return cfg

    def _is_value(self, override: Override) -> bool:
        """A value below a block or at the top, set as it is: it can choose no group and change no default."""
        key = override.key_or_group
        special = override.is_add() or override.is_delete() or override.is_force_add() or override.is_hydra_override()
        special = special or override.is_sweep_override()
        return not special and ("." in key or key in TOP) and not self.loader.repository.group_exists(key)
