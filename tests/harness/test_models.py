"""Loading: published parameter totals, tiny models of every family, heads that depend on the seed alone, identity of weights."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import conf
from harness.assets import WHEELS
from harness.config import ModelConfig
from harness.models import initialise_head, load, on_meta
from harness.tiny import byte_tokenizer
from harness.weights import CACHE, content_hash, file_sha256, fingerprint
from methods.base import ModelSpec
from methods.roles import head_names
from methods.spec import UserError
from tasks.base import Head

FOLDER = Path(conf.__file__).parent / "model"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TINY = [name for name in NAMES if name.startswith("tiny_")]
BINARY = Head(2, "single_label_classification")
TEXTS = ("a fine day", "the film is far too long, and dull")


def model_config(name: str, /, **changes: Any) -> ModelConfig:
    return ModelConfig(**(OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")) | changes))


def sources(tmp_path: Path, data_dir: Path | None = None, assets: Path | None = None) -> SimpleNamespace:
    return SimpleNamespace(data_dir=data_dir, assets=assets or tmp_path / "assets", offline=True)


def heads_of(name: str) -> Head | None:
    return None if name == "tiny_olmoe" else BINARY


PUBLISHED = {
    "minilm": 22_713_216 + 770,
    "bert_base": 109_483_778,
    "bert_base_cased": 108_311_810,
    "roberta_base": 124_647_170,
    "roberta_large": 355_361_794,
    "deberta_v3_base": 184_423_682,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "pythia_160m": 162_322_944,
    "pythia_410m": 405_334_016,
    "opt_125m": 125_239_296,
    "opt_1_3b": 1_315_758_080,
    "smollm2_135m": 134_515_008,
    "smollm2_135m_hub": 134_515_008,
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama3_2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "qwen2_5_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
    "gemma_2b": 2_506_172_416,
    "olmoe_1b_7b": 6_919_161_856,
    "mixtral_8x7b": 46_702_792_704,
    "bert_large": 335_143_938,
    "gpt2_large": 774_030_080,
    "llama_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "llama3_2_3b": 3_212_749_824,
    "gemma2_9b": 9_241_705_984,
}
"""Parameters of the published checkpoints; encoders with a head of two classes."""


DEBERTA = {"share_att_key", "position_buckets", "norm_rel_ebd", "conv_kernel_size", "conv_act"}
"""Keys that its code reads and its configuration class does not list."""


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_architecture_has_the_published_number_of_parameters(name: str, total: int) -> None:
    config = model_config(name)
    model = on_meta(config, BINARY if config.family == "encoder" else None)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == total


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_is_exactly_the_schema(name: str) -> None:
    raw = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert list(raw) == [field.name for field in fields(ModelConfig)]
    assert raw["name"] == name and raw["note"]
    pinned = bool(raw["revision"] and re.fullmatch("[0-9a-f]{40}", raw["revision"]))
    said = "commit is not pinned: give model.revision=<commit>" in (FOLDER / f"{name}.yaml").read_text().splitlines()[0]
    assert (raw["source"] == "hub") == (pinned or said) and not (pinned and said)
    settings = AutoConfig.for_model(**raw["architecture"])
    unknown = [key for key in raw["architecture"] if key not in AutoConfig.for_model(raw["architecture"]["model_type"]).to_dict()]
    assert set(unknown) <= DEBERTA | {"pooler_hidden_size", "word_embed_proj_dim"}
    assert raw["max_length"] <= settings.max_position_embeddings


@pytest.mark.parametrize("classify", [True, False], ids=["classifier", "language-model"])
@pytest.mark.parametrize("name", TINY)
def test_tiny_model_trains_and_reloads(name: str, classify: bool, tmp_path: Path) -> None:
    config = model_config(name)
    if classify and heads_of(name) is None:
        with pytest.raises(UserError, match=f"model {name}"):
            load(config, BINARY, ModelSpec(), 0, sources(tmp_path))
        return
    model, tokenizer, _ = load(config, BINARY if classify else None, ModelSpec(), 0, sources(tmp_path))
    batch = dict(tokenizer(list(TEXTS), padding=True, return_tensors="pt"))
    with torch.no_grad():
        before = model(**batch).logits
    torch.manual_seed(0)
    labels = torch.tensor([0, 1]) if classify else batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model.train()(**batch, labels=labels).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2 if classify else 264), abs=0.3)
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []
    model.save_pretrained(tmp_path / "model")
    text = AutoModelForMaskedLM if config.family == "encoder" else AutoModelForCausalLM
    auto = AutoModelForSequenceClassification if classify else text
    again, report = auto.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**batch).logits, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TINY if heads_of(name)])
def test_classifier_does_not_see_padding(name: str, tmp_path: Path) -> None:
    model, tokenizer, _ = load(model_config(name), BINARY, ModelSpec(), 0, sources(tmp_path))
    together = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    assert tokenizer.padding_side == "right" and int(together["attention_mask"][0].sum()) < together["attention_mask"].shape[1]
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
        torch.testing.assert_close(model(**together).logits, alone, rtol=0, atol=1e-6)
    assert (alone[0] - alone[1]).abs().max() > 1e-6


def test_a_decoder_without_padding_gets_one(tmp_path: Path) -> None:
    """As gpt2, llama and pythia come: neither the configuration nor the tokenizer names a padding token."""
    config = model_config("tiny_llama")
    model, tokenizer, _ = load(config, None, ModelSpec(), 0, sources(tmp_path))
    model.config.pad_token_id = tokenizer.pad_token = None
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "bare")
    assert AutoTokenizer.from_pretrained(tmp_path / "bare").pad_token is None
    model, tokenizer, _ = load(from_folder(tmp_path / "bare"), BINARY, ModelSpec(), 0, sources(tmp_path))
    assert model.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id == 5
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
        torch.testing.assert_close(model(**batch).logits, alone, rtol=0, atol=1e-6)


def test_a_decoders_head_reads_the_last_real_token(tmp_path: Path) -> None:
    """The logits of a text change with its last byte; a pad token taken for text would hide that."""
    model, tokenizer, _ = load(model_config("tiny_llama"), BINARY, ModelSpec(), 0, sources(tmp_path))
    batch = tokenizer(["abc", "abd", "abcdefgh"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model.base_model(**batch).last_hidden_state
        expected = model.score(hidden[torch.arange(3), batch["attention_mask"].sum(1) - 1])
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TINY if heads_of(name)])
def test_head_depends_on_the_seed_alone(name: str, tmp_path: Path) -> None:
    def head(seed: int, draws: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(draws)
        torch.rand(draws)
        state = torch.random.get_rng_state()
        model = load(model_config(name), BINARY, ModelSpec(), seed, sources(tmp_path))[0]
        assert torch.equal(torch.random.get_rng_state(), state)
        names = head_names(model)
        body.append({n: p.detach() for n, p in model.named_parameters() if n not in names})
        return {n: p.detach() for n, p in model.named_parameters() if n in names}

    body: list[dict[str, torch.Tensor]] = []
    first, second, other = head(3, 1), head(3, 17), head(4, 1)
    assert first and all(torch.equal(first[n], second[n]) for n in first)
    for key in first:
        assert (key.endswith("bias") and not first[key].any()) or (not torch.equal(first[key], other[key]) and first[key].std() < 0.04)
    assert all(torch.equal(body[0][n], one[n]) for one in body[1:] for n in body[0])


def test_backbone_does_not_depend_on_the_head(tmp_path: Path) -> None:
    two = load(model_config("tiny_bert"), BINARY, ModelSpec(), 0, sources(tmp_path))[0]
    one = load(model_config("tiny_bert"), Head(1, "regression"), ModelSpec(), 0, sources(tmp_path))[0]
    assert one.classifier.out_features == 1 and one.config.problem_type == "regression"
    ours = {n: p for n, p in one.named_parameters() if "classifier" not in n}
    assert all(torch.equal(p, ours[n]) for n, p in two.named_parameters() if "classifier" not in n)


def test_initialise_head_spread_and_scope(tmp_path: Path) -> None:
    model = load(model_config("tiny_roberta"), BINARY, ModelSpec(), 0, sources(tmp_path))[0]
    kept = model.classifier.out_proj.weight.detach().clone()
    drawn = initialise_head(model, 9, {"classifier.dense.weight", "roberta.encoder.layer.0.output.dense.weight"})
    assert drawn == ["classifier.dense.weight"]
    assert torch.equal(model.classifier.out_proj.weight, kept)
    assert float(model.classifier.dense.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_bfloat16_is_the_rounded_model(tmp_path: Path) -> None:
    exact = load(model_config("tiny_llama"), BINARY, ModelSpec(), 0, sources(tmp_path))[0]
    rounded = load(model_config("tiny_llama"), BINARY, ModelSpec(dtype="bfloat16"), 0, sources(tmp_path))[0]
    other = dict(rounded.named_parameters())
    assert all(torch.equal(p.to(torch.bfloat16), other[n]) for n, p in exact.named_parameters())
    assert rounded.model.rotary_emb.inv_freq.dtype == torch.float32


def test_config_edits_and_attention_reach_the_model(tmp_path: Path) -> None:
    spec = ModelSpec(attention="eager", config_edits={"hidden_dropout_prob": 0.0})
    model = load(model_config("tiny_bert"), BINARY, spec, 0, sources(tmp_path))[0]
    assert model.config._attn_implementation == "eager"
    assert model.bert.embeddings.dropout.p == 0.0


def test_byte_tokenizer_round_trip_and_pairs(tmp_path: Path) -> None:
    text = "Zürich, 東京\n\tend  "
    for tokenizer in (byte_tokenizer(decoder=True), byte_tokenizer()):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
        assert len(tokenizer) == 262 and max(ids) < 262
    assert len(byte_tokenizer(decoder=True)(text)["input_ids"]) == len(text.encode())
    pair = byte_tokenizer()("ab", "c")
    a, b, c = byte_tokenizer(decoder=True)("abc")["input_ids"]
    assert pair["input_ids"] == [1, a, b, 2, c, 2] and pair["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert set(byte_tokenizer(type_ids=False)("ab", "c")) == {"input_ids", "attention_mask"}
    assert byte_tokenizer(decoder=True)("ab", "c")["input_ids"] == [a, b, c]
    byte_tokenizer().save_pretrained(tmp_path)
    assert dict(AutoTokenizer.from_pretrained(tmp_path)("ab", "c")) == dict(pair)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A causal tiny llama with its tokenizer in a folder."""
    model, tokenizer, _ = load(model_config("tiny_llama"), None, ModelSpec(), 0, sources(tmp_path))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def from_folder(folder: Path) -> ModelConfig:
    return model_config("tiny_llama", name="mine", source="folder", id=str(folder))


def test_a_folder_loads_quietly_and_says_what_was_missing(saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: Any) -> None:
    model, tokenizer, origin = load(from_folder(saved), BINARY, ModelSpec(), 5, sources(tmp_path))
    streams = capfd.readouterr()
    assert streams.out == streams.err == "" and not caplog.records
    assert origin["missing"] == ["score.weight"] and origin["unexpected"] == ["lm_head.weight"]
    assert json.loads(json.dumps(origin)) == origin
    stored = load_file(saved / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in stored.items() if key != "lm_head.weight")
    assert tokenizer.model_max_length == 128 and model.config.pad_token_id == tokenizer.pad_token_id


def test_a_stored_head_is_kept_and_another_size_is_drawn_anew(saved: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = load(from_folder(saved), BINARY, ModelSpec(), 5, sources(tmp_path))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "head")
    same, _, origin = load(from_folder(tmp_path / "head"), BINARY, ModelSpec(), 6, sources(tmp_path))
    assert origin["missing"] == [] and torch.equal(same.score.weight, model.score.weight)
    wider, _, origin = load(from_folder(tmp_path / "head"), Head(3, BINARY.problem_type), ModelSpec(), 6, sources(tmp_path))
    assert origin["missing"] == ["score.weight"] and wider.score.weight.shape == (3, 32)


def test_a_checkpoint_without_a_backbone_weight_is_refused(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights \(first: model.layers.1.mlp.up_proj.weight\)"):
        load(from_folder(saved), BINARY, ModelSpec(), 0, sources(tmp_path))


def test_a_truncated_checkpoint_is_refused(saved: Path, tmp_path: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model mine .* cannot be read"):
        load(from_folder(saved), BINARY, ModelSpec(), 0, sources(tmp_path))


def test_pickled_weights_are_not_read(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        load(from_folder(saved), BINARY, ModelSpec(), 0, sources(tmp_path))
    with pytest.raises(UserError, match=r"has no \*\.safetensors file"):
        fingerprint(from_folder(saved), tmp_path / "assets", None)


ABSENT = [
    ({"source": "hub", "id": "nobody/nothing", "revision": "0" * 40}, "cannot be read: .*the prefetched assets"),
    ({"source": "hub", "id": None}, "has source hub but no id; give model.id=<repository"),
    ({"source": "folder", "id": "nowhere"}, "models/nowhere beside data_dir; give data_dir="),
    ({"source": "folder", "id": "/nowhere"}, "/nowhere is no model folder"),
    ({"source": "folder", "id": None}, "has source folder but no id"),
    ({"source": "assets", "id": "minilm"}, "type: parebench-prefetch model=minilm"),
    ({"source": "assets", "id": "bert"}, "model.id=bert is not an asset; allowed: minilm, smollm2_135m"),
    ({"family": "encoder"}, "is given as encoder, but llama is not one"),
]


@pytest.mark.parametrize(("changes", "message"), ABSENT)
def test_what_cannot_be_loaded_is_one_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(model_config("tiny_llama", **changes), BINARY, ModelSpec(), 0, sources(tmp_path))
    assert "\n" not in str(caught.value)


def test_fingerprint_is_the_content_not_the_place(saved: Path, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    here = fingerprint(from_folder(saved), assets, None)
    digests = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(saved.iterdir())]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {name for name, _ in digests}
    assert here == f"sha256:{hashlib.sha256(json.dumps(digests).encode()).hexdigest()}"
    (tmp_path / "project" / "data").mkdir(parents=True)
    shutil.copytree(saved, tmp_path / "project" / "models" / "mine")
    assert fingerprint(model_config("tiny_llama", source="folder", id="mine"), assets, tmp_path / "project" / "data") == here
    settings = (saved / "config.json").read_text()
    (saved / "config.json").write_text(settings + "\n")
    assert fingerprint(from_folder(saved), assets, None) != here
    (saved / "config.json").write_text(settings)
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(from_folder(saved), assets, None) != here


def test_file_hash_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "a.safetensors", tmp_path / CACHE
    file.write_bytes(b"one")
    assert file_sha256(file, cache) == hashlib.sha256(b"one").hexdigest()
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(known, "remembered")))
    assert file_sha256(file, cache) == "remembered"
    file.write_bytes(b"three")
    assert file_sha256(file, cache) == hashlib.sha256(b"three").hexdigest()
    assert content_hash(tmp_path, cache) == hashlib.sha256(json.dumps([[file.name, file_sha256(file, cache)]]).encode()).hexdigest()


def test_fingerprints_of_the_other_sources(tmp_path: Path) -> None:
    bert = model_config("bert_base")
    assert fingerprint(bert, tmp_path, None) == f"hub:google-bert/bert-base-uncased@{bert.revision}"
    tiny = model_config("tiny_bert")
    assert fingerprint(tiny, tmp_path, None) == fingerprint(model_config("tiny_bert", name="renamed", note="another"), tmp_path, None)
    wider = tiny.architecture | {"intermediate_size": 96}
    assert fingerprint(tiny, tmp_path, None) != fingerprint(model_config("tiny_bert", architecture=wider), tmp_path, None)
    assert fingerprint(model_config("minilm"), tmp_path, None) == f"wheel:{WHEELS['minilm'].sha256}"


def test_an_unpinned_hub_model_is_known_by_the_prefetched_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    unpinned = model_config("gpt2", revision=None)
    with pytest.raises(UserError, match="names no commit and is not prefetched"):
        fingerprint(unpinned, tmp_path, None)
    refs = tmp_path / "models--openai-community--gpt2" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123")
    assert fingerprint(unpinned, tmp_path, None) == "hub:openai-community/gpt2@abc123"


def test_identity_needs_no_torch() -> None:
    code = "import sys, harness.weights; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parents[1], check=False).returncode == 0


def test_minilm_is_complete(assets: Path, minilm_dir: Path, tmp_path: Path) -> None:
    model, tokenizer, origin = load(model_config("minilm"), BINARY, ModelSpec(), 0, sources(tmp_path, assets=assets))
    assert sum(p.numel() for p in model.bert.parameters()) == 22_713_216
    assert origin["missing"] == ["classifier.bias", "classifier.weight"] and origin["unexpected"] == []
    stored = load_file(minilm_dir / "model.safetensors")
    parameters = dict(model.bert.named_parameters())
    assert all(torch.equal(parameters[key], value) for key, value in stored.items() if key in parameters)
    assert parameters.keys() <= stored.keys()
    assert tokenizer("hello world")["input_ids"] == [101, 7592, 2088, 102]


@pytest.mark.parametrize("name", ["minilm", "smollm2_135m", "stories15m"])
def test_architecture_in_the_yaml_is_that_of_the_checkpoint(name: str, request: pytest.FixtureRequest) -> None:
    fixture = {"minilm": "minilm_dir", "smollm2_135m": "smollm2_dir", "stories15m": "shared_models"}[name]
    folder = request.getfixturevalue(fixture) / ("stories15M" if name == "stories15m" else "")
    stored = AutoConfig.from_pretrained(folder).to_dict()
    ours = AutoConfig.for_model(**model_config(name).architecture).to_dict()

    def same(one: Any, other: Any) -> bool:  # a GGUF file keeps its numbers in float32
        return one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other)

    stated = model_config(name).architecture.keys()
    wrong = {key: (ours[key], stored.get(key)) for key in stated if not same(ours[key], stored.get(key))}
    assert wrong == {}


def test_stories15m_speaks(shared_data: Path, shared_models: Path, tmp_path: Path) -> None:
    """The text it was trained on is far likelier than its words in another order."""
    model, tokenizer, origin = load(model_config("stories15m"), None, ModelSpec(), 0, sources(tmp_path, data_dir=shared_data))
    assert origin["missing"] == origin["unexpected"] == [] and origin["id"] == "stories15M"

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    assert loss("Once upon a time, there was a little girl named Lily.") + 2 < loss("Lily named. a little Once girl was time, upon there a")
