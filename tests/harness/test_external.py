"""The life of `external`: a cell's export gives that cell's metrics, the id holds contents, what cannot be is one sentence."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from harness import plan
from harness.cli import run
from harness.compose import compose
from harness.external import check, fingerprint, folder
from harness.identity import identify
from harness.needs import specs
from harness.record import Record
from harness.resolve import resolve
from harness.store import Store
from methods.spec import Place, UserError
from tests.contract.toy import write_toy_data
from tests.harness.tiny_sweep import TINY, cells, sweep

COMMIT = "0123456789" * 4


class Made:
    """A store with two trained cells, and every kind of folder that they left."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.data = root, root / "runs", write_toy_data(root / "toy")
        code, said = self.run('hydra.sweeper.grids=[{method: full_ft}, {method: lora, recipe.lr: "0.1"}]', "run.keep_model=true")
        assert code == 0, said

    def run(self, *argv: str) -> tuple[int, str]:
        """A sweep of tiny cells, under a protocol that needs no selection rows."""
        return sweep(self.store, self.data, f"run.assets={self.root}", *argv)

    def record(self, method: str, weights: str = "") -> Record:
        """The only record of a method (on these weights)."""
        found = [r for r in Store(self.store).records() if r.identity["method"]["name"] == method]
        (record,) = [r for r in found if r.identity["method"].get("weights", "") == weights or not weights]
        return record

    def folder(self, method: str, name: str = "model") -> Path:
        """`model` or `adapter` of the cell of a method."""
        return self.store / self.record(method).cell / name

    def evaluated(self, path: Path) -> Record:
        """The record of `external` on a folder, which is run."""
        code, said = self.run("method=external", f"method.path={path}")
        assert code == 0, said
        return self.record("external", fingerprint(Place(path=str(path), hub=None, revision=None, kind="auto"), self.root))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def predictions(made: Made, record: Record) -> dict[str, str]:
    """Contents of the files of predictions, by name."""
    return {file.name: file.read_bytes().hex() for file in (made.store / record.cell / "evals").glob("*.parquet")}


def metrics(record: Record) -> dict[str, dict[str, float]]:
    """What was measured on the final model, by protocol."""
    return {result.protocol: result.metrics for result in record.results if result.variant == "main"}


@pytest.mark.parametrize("method", ["full_ft", "lora"])
def test_the_export_of_a_cell_gives_exactly_its_metrics(made: Made, method: str) -> None:
    own, again = made.record(method), made.evaluated(made.folder(method))
    assert metrics(again) == metrics(own) and metrics(own)
    main = {name: text for name, text in predictions(made, own).items() if "last" not in name}
    assert predictions(made, again) == main and main
    assert again.measures == {"kind": "checkpoint"} and not again.phases and again.costs["flops"]["training"] == 0


def test_the_adapter_of_a_cell_gives_its_metrics_and_ships_what_the_cell_ships(made: Made) -> None:
    own, again = made.record("lora"), made.evaluated(made.folder("lora", "adapter"))
    ours, theirs = metrics(own), metrics(again)
    assert ours.keys() == theirs.keys() and all(theirs[name] == pytest.approx(ours[name], abs=1e-5) for name in ours)
    assert again.measures == {"kind": "adapter", "peft_type": "LORA", "base": "tiny_bert"}
    for counted in ("shipped", "changed"):
        assert again.costs[counted] == own.costs[counted]
    keys = ("trainable_method", "trainable_head")
    assert [again.costs["parameters"][key] for key in keys] == [own.costs["parameters"][key] for key in keys]


def test_a_checkpoint_counts_what_differs_from_the_model(made: Made) -> None:
    """LoRA changed the maps q and v of every layer, and the head was trained."""
    before, again = made.record("lora").costs["parameters"], made.evaluated(made.folder("lora"))
    tensors = load_file(made.folder("lora") / "model.safetensors")
    touched = sum(t.numel() for name, t in tensors.items() if re.search(r"(query|value)\.weight", name))
    counts = again.costs["parameters"]
    assert (counts["trainable_method"], counts["trainable_head"]) == (touched, before["trainable_head"])
    assert again.costs["changed"]["parameters"] == touched + before["trainable_head"]


def cell(*overrides: str, data: Path | None = None) -> OmegaConf:
    """A composed configuration of `external`."""
    return OmegaConf.create(compose([*TINY, "method=external", *([f"data_dir={data}"] if data else []), *overrides]))


def test_the_id_holds_the_content_and_no_place(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.folder("lora"), tmp_path / "elsewhere")

    def half(path: Path, *more: str) -> dict:
        return identify(resolve(cell(f"method.path={path}", f"run.assets={made.root}", *more, data=made.data))).canonical

    here, there = half(made.folder("lora")), half(tmp_path / "elsewhere", "seed=7", "method.kind=checkpoint")
    assert here == there and str(made.root) not in json.dumps(here)
    assert here["method"].keys() == {"name", "weights"} and here["method"]["weights"].startswith("sha256:")
    tensors = load_file(tmp_path / "elsewhere/model.safetensors")
    save_file(tensors | {"classifier.bias": tensors["classifier.bias"] + 1}, tmp_path / "elsewhere/model.safetensors")
    assert half(tmp_path / "elsewhere") != here


def test_a_hub_repository_is_its_commit_and_is_asked_for_when_the_cell_runs(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = cell("method.hub=someone/something", f"method.revision={COMMIT}", data=made.data)
    assert identify(resolve(cfg)).canonical["method"] == {"name": "external", "weights": f"hub:someone/something@{COMMIT}"}
    with pytest.raises(UserError, match=rf"method.hub=someone/something at {COMMIT} cannot be fetched: .*; check name and network"):
        folder(resolve(cfg).cell.method_config.place(), offline=True)


def test_of_a_hub_repository_only_safetensors_and_json_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, dict]] = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert folder(Place(path=None, hub="someone/something", revision=COMMIT, kind="auto"), offline=False) == tmp_path
    ((repository, options),) = asked
    assert (repository, options["revision"], options["local_files_only"]) == ("someone/something", COMMIT, False)
    assert options["allow_patterns"] == ["*.safetensors", "*.json"] and options["ignore_patterns"] == ["*/*"]


def test_nothing_is_trained_for_it_first(made: Made) -> None:
    cfg = cell(f"method.path={made.folder('lora')}", "task=glue/rte", "task.init=glue/mnli")
    assert specs(resolve(cfg)) == ()


def changed_config(path: Path, **values: object) -> None:
    """Edit config.json."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pickled(path: Path) -> None:
    """Weights as a pickle alone."""
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")


PLANNED: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...], str]] = {
    "nothing there": ("model", shutil.rmtree, (), "is no folder; give the folder of a checkpoint or of a PEFT adapter"),
    "neither": ("model", lambda p: (p / "config.json").unlink(), (), "holds neither config.json nor adapter_config.json"),
    "a pickle": ("model", pickled, (), "has no *.safetensors file"),
    "a pickled adapter": (
        "adapter",
        lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
        (),
        "save the adapter as",
    ),
    "not what it is": ("adapter", lambda p: None, ("method.kind=checkpoint",), "is of kind adapter; give method.kind=adapter"),
    "another type": ("model", lambda p: None, ("model=tiny_roberta",), "is of type bert, and model tiny_roberta is of type roberta"),
    "quantised": ("model", lambda p: changed_config(p, quantization_config={}), (), "holds quantised weights"),
    "no stock model": (
        "model",
        lambda p: (p / "adapter.json").write_text('{"method": "houlsby"}'),
        (),
        "with modules of houlsby beside it",
    ),
    "no JSON": ("model", lambda p: (p / "config.json").write_text("{"), (), "cannot be read as JSON"),
    "no place": ("model", lambda p: None, ("method.path=null",), "neither is given; give one: method.path=<folder>"),
}


@pytest.mark.parametrize(
    ("base", "fits"), [("FacebookAI/roberta-base", True), ("elsewhere/roberta", False), ("tiny_bert", True), (None, True)]
)
def test_an_adapter_that_names_another_published_base_is_refused(tmp_path: Path, base: str | None, fits: bool) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (tmp_path / "adapter_model.safetensors").touch()
    place = Place(path=str(tmp_path), hub=None, revision=None, kind="auto")
    model = resolve(cell(f"method.path={tmp_path}", "model=roberta_base")).cell.model
    if fits:
        check(place, tmp_path, model)
    else:
        with pytest.raises(UserError, match="adapts elsewhere/roberta, and model roberta_base is FacebookAI/roberta-base; take"):
            check(place, tmp_path, model)


@pytest.mark.parametrize("name", PLANNED)
def test_what_the_files_tell_is_refused_before_anything_runs(
    made: Made, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, change, overrides, message = PLANNED[name]
    shutil.copytree(made.folder("lora", kind), tmp_path / "given")
    change(tmp_path / "given")
    places = [f"method.path={tmp_path / 'given'}", f"run.store={tmp_path / 'runs'}", f"data_dir={made.data}", f"run.assets={tmp_path}"]
    assert run([*TINY, "method=external", *places, *overrides]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and said.startswith("parebench: ") and "\n" not in said
    assert not (tmp_path / "runs").exists()


def wider(path: Path) -> None:
    """Two hidden units more in one map, and a configuration that says so for all."""
    changed_config(path, intermediate_size=json.loads((path / "config.json").read_text())["intermediate_size"] + 2)


def without(path: Path, name: str) -> None:
    """The weights less one."""
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def with_more(path: Path) -> None:
    """The weights and one of a module that a stock model does not have."""
    tensors = load_file(path / "model.safetensors")
    tensors["bert.encoder.layer.0.bottleneck.weight"] = torch.ones(2)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def headless(path: Path) -> None:
    """An adapter without the task head."""
    file = path / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lora" in name}, file)


LOADED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "another architecture": (
        "model",
        wider,
        "has another architecture than model tiny_bert: bert.encoder.layer.0.intermediate.dense.bias is",
    ),
    "no head": ("model", lambda p: without(p, "classifier.weight"), "lacks 1 weights of BertForSequenceClassification in the task's form"),
    "more than stock": ("model", with_more, "holds 1 weights that BertForSequenceClassification has no place for"),
    "cut short": ("model", lambda p: (p / "model.safetensors").write_bytes(b"\0" * 20), "cannot be read"),
    "an adapter without a head": ("adapter", headless, "and tiny_bert has none either; save the task head with the adapter"),
}


@pytest.mark.parametrize("name", LOADED)
def test_what_the_weights_tell_is_one_sentence(made: Made, tmp_path: Path, name: str) -> None:
    from harness.cell import set_up

    kind, change, message = LOADED[name]
    shutil.copytree(made.folder("lora", kind), tmp_path / "given")
    change(tmp_path / "given")
    planned = plan.check(
        cell(f"method.path={tmp_path / 'given'}", f"run.store={tmp_path / 'runs'}", f"run.assets={tmp_path}", data=made.data)
    )
    bench = set_up(planned.container)
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        bench.method.prepare(bench.model, bench.ctx)
    assert "\n" not in str(raised.value)


def test_a_refused_folder_ends_its_sweep_with_the_sentence(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.folder("lora"), tmp_path / "given")
    wider(tmp_path / "given")
    code, _ = made.run("method=external", f"method.path={tmp_path / 'given'}")
    (outcome,) = [told for told in cells(made.store).values() if told["status"] == "error"]
    assert code == 1 and outcome["code"] == 2 and "has another architecture than model tiny_bert" in outcome["lines"][-1]
