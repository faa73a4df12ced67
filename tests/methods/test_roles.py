"""The roles table against the shapes of real architectures (meta device) and against an independent walk of the tiny models."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertModel
from transformers.pytorch_utils import Conv1D

import conf
from methods import roles
from methods.spec import UserError

FOLDER = Path(conf.__file__).parent / "model"
TINY = sorted(path.stem for path in FOLDER.glob("tiny_*.yaml"))
WITH_HEAD = [name for name in TINY if name != "tiny_olmoe"]


def build(name: str, classify: bool, device: str = "cpu", labels: int = 2) -> nn.Module:
    architecture = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))["architecture"]
    auto = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    config = AutoConfig.for_model(**architecture, **({"num_labels": labels} if classify else {}))
    with torch.device(device):
        return auto.from_config(config)


def is_decoder(name: str) -> bool:
    return OmegaConf.load(FOLDER / f"{name}.yaml").family == "decoder"


def weight_shape(module: nn.Module) -> tuple[int, int]:
    """(out, in), whatever way round it is kept."""
    rows, columns = module.weight.shape
    return (columns, rows) if roles.weight_is_transposed(module) else (rows, columns)


@pytest.mark.parametrize(
    ("name", "prunable"),
    [
        ("bert_base", 84_934_656),
        ("roberta_base", 84_934_656),
        ("deberta_v3_base", 84_934_656),
        ("gpt2", 84_934_656),
        ("opt_125m", 84_934_656),
        ("pythia_160m", 84_934_656),
        ("llama2_7b", 6_476_005_376),
        ("mistral_7b", 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)),
        ("qwen3_0_6b", 28 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)),
        ("gemma_2b", 18 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 16384)),
        ("olmoe_1b_7b", 16 * (4 * 2048 * 2048 + 64 * 3 * 2048 * 1024)),
        ("mixtral_8x7b", 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336)),
    ],
)
def test_prunable_weights_of_published_architectures(name: str, prunable: int) -> None:
    model = build(name, classify=not is_decoder(name), device="meta")
    parameters = roles.prunable_parameters(model)
    assert sum(parameter.numel() for parameter in parameters.values()) == prunable
    assert parameters.keys() <= dict(model.named_parameters()).keys()


@pytest.mark.parametrize(
    ("name", "modules", "rank_8"),
    [
        ("roberta_base", 24, 294_912),
        ("llama2_7b", 64, 4_194_304),
        ("gpt2", 12, 12 * 8 * (768 + 2304)),
        ("pythia_160m", 12, 12 * 8 * (768 + 2304)),
    ],
)
def test_lora_on_q_and_v_counts(name: str, modules: int, rank_8: int) -> None:
    """A rank-8 delta on q and v has 8 * (in + out) parameters a module; fused families count the fused map once."""
    model = build(name, classify=not is_decoder(name), device="meta")
    names = roles.role_names(model, ["q", "v"])
    assert len(names) == len(set(names)) == modules
    assert sum(8 * sum(weight_shape(model.get_submodule(n))) for n in names) == rank_8


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("roberta_base", 592_130), ("bert_base", 592_130), ("deberta_v3_base", 592_130), ("gpt2", 1536), ("llama3_2_1b", 4096)],
)
def test_head_parameters(name: str, parameters: int) -> None:
    model = build(name, classify=True, device="meta")
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert sum(sizes[n] for n in roles.head_names(model)) == parameters


@pytest.mark.parametrize("name", TINY)
def test_every_role_resolves_to_a_module_of_the_right_shape(name: str) -> None:
    model = build(name, classify=not is_decoder(name))
    config = model.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * hidden
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    expected = {
        "q": (heads * head_dim, hidden), "k": (keys * head_dim, hidden), "v": (keys * head_dim, hidden),
        "qkv": (3 * hidden, hidden), "o": (hidden, heads * head_dim), "router": (experts, hidden),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
    }  # fmt: skip
    available = roles.available(model)
    assert {"o"} < set(available) and len(available) >= 4
    for role in available:
        names = roles.role_names(model, [role])
        assert [int(next(part for part in n.split(".") if part.isdigit())) for n in names] == [0, 1]
        if role == "experts":
            shapes = {tuple(p.shape) for p in roles.expert_parameters(model).values()}
            assert shapes == {(experts, 2 * inner, hidden), (experts, hidden, inner)}
        else:
            assert {weight_shape(model.get_submodule(n)) for n in names} == {expected[role]}


@pytest.mark.parametrize("model_type", roles.FAMILIES)
def test_square_maps_are_not_swapped(model_type: str) -> None:
    """Shapes cannot tell q, k and v (or gate and up) apart; each family names them by their letter."""
    for role, path in roles.roles_of(model_type).maps.items():
        if role in ("q", "k", "v", "gate") or (role == "up" and "gate" in roles.roles_of(model_type).maps):
            assert path.split(".")[-1].startswith(role)


@pytest.mark.parametrize("name", TINY)
def test_roles_cover_exactly_the_prunable_maps(name: str) -> None:
    """Each linear map of a block has one role, and nothing outside the blocks is prunable."""
    model = build(name, classify=not is_decoder(name))
    named = roles.role_names(model, [role for role in roles.available(model) if role not in ("router", "experts")])
    assert sorted(named) == sorted(roles.prunable(model))
    blocks = {id(m) for block in roles.layers(model) for m in block.modules()}
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    assert set(roles.prunable(model)) == {n for n in linear if id(model.get_submodule(n)) in blocks}
    heads = roles.head_names(model)
    tables = {id(p) for m in roles.embeddings(model).values() for p in m.parameters()}
    assert not heads & roles.prunable_parameters(model).keys()
    assert not tables & {id(p) for p in roles.prunable_parameters(model).values()}


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_one_place(name: str) -> None:
    """Prunable, biases, norms, embeddings, router, head and unembedding partition the parameters."""
    model = build(name, classify=not is_decoder(name))
    owned = [id(p) for p in roles.prunable_parameters(model).values()]
    owned += [id(m.bias) for m in roles.prunable(model).values() if m.bias is not None]
    for modules in (roles.norms(model), roles.embeddings(model)):
        owned += [id(p) for m in modules.values() for p in m.parameters()]
    if "router" in roles.available(model):
        owned += [id(model.get_submodule(n).weight) for n in roles.role_names(model, ["router"])]
    parameters = dict(model.named_parameters())
    owned += [id(parameters[n]) for n in roles.head_names(model)]
    unembedding = roles.lm_head(model)
    if unembedding is not None:
        owned += [id(p) for p in unembedding.parameters() if id(p) not in owned]
    assert len(owned) == len(set(owned))
    assert {n for n, p in parameters.items() if id(p) not in owned} == set()


@pytest.mark.parametrize("name", TINY)
def test_norms_equal_a_scan_by_class(name: str) -> None:
    model = build(name, classify=not is_decoder(name))
    heads = {n.rsplit(".", 1)[0] for n in roles.head_names(model)}
    scan = {n for n, m in model.named_modules() if type(m).__name__.endswith("Norm") and n not in heads}
    assert set(roles.norms(model)) == scan


@pytest.mark.parametrize("name", WITH_HEAD)
def test_head_is_what_the_label_count_and_a_base_model_tell(name: str) -> None:
    """Independent: all that is not in the bare backbone is head; bert's pooler is the one part of the backbone that is."""
    model = build(name, classify=True)
    backbone = {id(p) for p in model.base_model.parameters()}
    outside = {n for n, p in model.named_parameters() if id(p) not in backbone}
    extra = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"} if name == "tiny_bert" else set()
    assert roles.head_names(model) == outside | extra


@pytest.mark.parametrize("name", WITH_HEAD)
def test_output_layer_takes_in_the_features(name: str) -> None:
    model = build(name, classify=True, labels=3).eval()
    model.config.pad_token_id = 0
    seen = []
    roles.output_layer(model).register_forward_hook(lambda *call: seen.append(call[1][0]))
    model(input_ids=torch.tensor([[7, 8, 9, 10]]))
    pooled = name in ("tiny_bert", "tiny_deberta")
    assert seen[0].shape == ((1, 32) if pooled else (1, 4, 32))


def test_causal_models_have_no_head() -> None:
    model = build("tiny_llama", classify=False)
    assert roles.head_names(model) == set()
    assert roles.lm_head(model) is model.lm_head
    with pytest.raises(UserError, match="has no task head"):
        roles.output_layer(model)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_gpt2", "tiny_llama"])
def test_names_through_peft(name: str) -> None:
    plain = build(name, classify=True)
    bare = {key: tuple(p.shape) for key, p in roles.prunable_parameters(plain).items()}
    head = roles.head_names(plain)
    targets = roles.role_names(plain, ["q", "v"])
    model = get_peft_model(plain, LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=targets, fan_in_fan_out=roles.fused(plain)))
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    wrapped = roles.role_names(model, ["q", "v"])
    assert wrapped == [f"base_model.model.{target}" for target in targets]
    assert all(hasattr(modules[n], "lora_A") for n in wrapped)
    prunable = roles.prunable_parameters(model)
    assert all(parameters[key] is p for key, p in prunable.items())
    assert [tuple(p.shape) for p in prunable.values()] == list(bare.values())
    names = roles.head_names(model)
    assert names <= parameters.keys() and len(names) >= len(head)
    short = {n.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for n in names}
    assert short == head
    assert all(p.requires_grad == (key in names) for key, p in parameters.items() if "lora" not in key and "pooler" not in key)


def test_roles_of_a_bare_backbone_have_no_prefix() -> None:
    architecture = OmegaConf.to_container(OmegaConf.load(FOLDER / "tiny_bert.yaml"))["architecture"]
    model = BertModel(BertConfig(**{key: value for key, value in architecture.items() if key != "model_type"}))
    assert roles.role_names(model, ["q"]) == [f"encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert roles.head_names(model) == set()
    assert sum(p.numel() for p in roles.prunable_parameters(model).values()) == 2 * (4 * 32 * 32 + 2 * 32 * 64)


def test_order_and_fused_names() -> None:
    gpt2, llama = build("tiny_gpt2", classify=False), build("tiny_llama", classify=False)
    assert roles.fused(gpt2) and not roles.fused(llama)
    assert roles.role_names(gpt2, ["v", "q", "qkv"]) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert roles.role_names(llama, ["down", "q"])[:3] == [
        "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip
    assert roles.role_names(llama, ["qkv"]) == roles.role_names(llama, ["q", "k", "v"])
    assert math.prod(gpt2.get_submodule("transformer.h.0.attn.c_attn").weight.shape) == 32 * 96


def test_mistakes_are_one_sentence() -> None:
    model = build("tiny_bert", classify=True)
    with pytest.raises(UserError, match="role query is unknown; allowed: q, k, v"):
        roles.role_names(model, ["query"])
    with pytest.raises(UserError, match="bert has no gate; it has: q, k, v, o, up, down"):
        roles.role_names(model, ["gate"])
    assert roles.role_names(model, ["gate", "up"]) == roles.role_names(model, ["up"])
    with pytest.raises(UserError, match="model_type=t5 is not in the roles table; known: bert"):
        roles.roles_of("t5")
    with pytest.raises(UserError, match="Linear holds no transformers model"):
        roles.family(nn.Linear(2, 2))


def test_weight_orientation() -> None:
    assert roles.weight_is_transposed(Conv1D(6, 4)) and not roles.weight_is_transposed(nn.Linear(4, 6))
    assert weight_shape(Conv1D(6, 4)) == weight_shape(nn.Linear(4, 6)) == (6, 4)
