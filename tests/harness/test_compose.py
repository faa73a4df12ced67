"""A sweep's cells are composed by a short cut; it must give what Hydra's own way gives, errors included."""

from collections.abc import Iterator

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.cli import register_sweeps
from harness.compose import Compositions
from harness.resolve import without_hydra

MASTER = ["task=demo/sst2", "+sweeps=quickstart", "run.threads=1"]
SAME = {
    "nothing": [],
    "values": ["seed=3", "recipe.lr=1e-3", "run.store=x"],
    "groups": ["method=lora", "model=tiny_bert", "budget=smoke"],
    "a value before its group": ["method.r=4", "method=lora", "method.alpha=8"],
    "a nested group": ["task=glue/mrpc", "task.limit=8"],
    "a key twice": ["seed=1", "seed=2"],
    "a group twice": ["method=lora", "method=bitfit"],
    "a list": ["method=lora", "method.targets=[q,k]"],
    "an empty list": ["method=lora", "method.targets=[]"],
    "null": ["method=lora", "method.rslora=null", "data_dir=null"],
    "text with signs": ["run.store='a=b,c'", 'run.sweep="x y"'],
    "an interpolation": ["run.store=${run.assets}/runs", "run.sweep=${method.name}"],
    "an added key": ["+run.extra=1", "+extra.deep.key=2"],
    "a forced key": ["++run.extra=1", "++seed=4"],
    "a deleted key": ["~run.only", "~budget.evaluations"],
    "a whole block": ["recipe={lr: 0.1, batch: 2}", "run.retry=[oom,error]"],
    "a deep value": ["model=tiny_bert", "model.architecture.hidden_size=16"],
    "a new deep key": ["model=tiny_bert", "model.architecture={}"],
    "a value of the launcher": ["hydra.launcher.workers=3", "seed=1"],
    "true and numbers": ["run.force=true", "run.time_limit_minutes=0.5", "task.limit=007"],
    "an empty value": ["run.sweep="],
}
WRONG = {
    "an unknown key": ["method=lora", "method.rank=4"],
    "an unknown top key": ["sed=4"],
    "an unknown block": ["recip.lr=4"],
    "an unknown option": ["method=lorra"],
    "an unknown group": ["metod=lora"],
    "a key of another method": ["method.r=4", "method=bitfit"],
    "below a value": ["seed.x=1"],
    "added though it is there": ["+seed=1"],
    "deleted though it is not there": ["~run.nothing"],
    "unreadable": ["seed=[1"],
    "no value": ["seed"],
    "several values": ["seed=1,2"],
    "a choice of one": ["method=lora", "method.r=choice(4)"],
    "deleted though it is null": ["~recipe.epsilon"],
    "a group that is removed": ["~method=lora"],
}


@pytest.fixture(scope="module")
def ways() -> Iterator[tuple[object, DictConfig, Compositions]]:
    """Hydra's loader, the configuration of a sweep, and the short cut over both."""
    GlobalHydra.instance().clear()
    register_sweeps()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", MASTER, run_mode=RunMode.MULTIRUN)
        yield loader, master, Compositions(loader, master)


def plainly(cfg: DictConfig) -> object:
    """Plain values, references resolved."""
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("overrides", SAME.values(), ids=SAME.keys())
def test_the_short_cut_composes_what_hydra_composes(overrides: list[str], ways) -> None:
    loader, master, short = ways
    expected = plainly(without_hydra(loader.load_sweep_config(master, overrides)))
    assert plainly(short(overrides)) == expected
    assert plainly(short([*overrides, "seed=77"])) != expected  # and what a cell sets is not seen by the next one
    assert plainly(short(overrides)) == expected


@pytest.mark.parametrize("overrides", WRONG.values(), ids=WRONG.keys())
def test_the_short_cut_refuses_what_hydra_refuses_in_its_words(overrides: list[str], ways) -> None:
    loader, master, short = ways
    with pytest.raises((HydraException, OmegaConfBaseException)) as hydras:
        loader.load_sweep_config(master, overrides)
    with pytest.raises(type(hydras.value)) as ours:
        short(overrides)
    assert str(ours.value) == str(hydras.value)


def test_cells_that_differ_in_values_share_one_composition(ways, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, master, _ = ways
    calls: list[list[str]] = []
    real = loader.load_sweep_config
    monkeypatch.setattr(loader, "load_sweep_config", lambda cfg, overrides: calls.append(overrides) or real(cfg, overrides))
    short = Compositions(loader, master)
    for method in ("lora", "bitfit"):
        for seed in range(5):
            short([f"method={method}", f"seed={seed}", "recipe.lr=1e-3"])
    assert calls == [["method=lora"], ["method=bitfit"]]
