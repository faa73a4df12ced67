"""The roles table: where each model family keeps its parts. The only place that knows families by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from methods.spec import UserError

ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down", "router", "experts")
"""Allowed roles: attention projections (`qkv` = all three), feed-forward maps, MoE router and fused experts."""


@dataclass(frozen=True)
class Roles:
    """One family's paths. Three roots: a layer of `layers`, the backbone (`model.base_model`), the whole model."""

    decoder: bool
    """Causal decoder (True) or bidirectional encoder (False)."""
    layers: str
    """The layer list, from the backbone."""
    maps: dict[str, str]
    """Role -> linear map (or router), from a layer; a fused family has `qkv` instead of `q`, `k`, `v`."""
    norms: tuple[str, ...]
    """Normalisations of a layer."""
    outer_norms: tuple[str, ...]
    """Normalisations outside the layers, from the backbone."""
    embeddings: tuple[str, ...]
    """Embedding tables, from the backbone."""
    output: str = "score"
    """The last module of the task head, from the model; what it takes in are the features of a probe."""
    head: tuple[str, ...] = ("score",)
    """Modules of the task head, from the model."""
    pooler: str | None = None
    """A part of the task head that lies in the backbone."""
    lm_head: str | None = "lm_head"
    """Unembedding of the causal language model, from the model."""
    experts: str | None = None
    """The module of the fused experts, from a layer."""
    expert_parameters: dict[str, str] = field(default_factory=dict)
    """What a fused (experts, out, in) parameter of that module holds -> its name."""


BERT = Roles(
    decoder=False,
    layers="encoder.layer",
    maps={
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value", "o": "attention.output.dense",
        "up": "intermediate.dense", "down": "output.dense",
    },
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
    outer_norms=("embeddings.LayerNorm",),
    embeddings=("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings"),
    output="classifier",
    head=("classifier",),
    pooler="pooler",
    lm_head=None,
)  # fmt: skip

ROBERTA = Roles(
    decoder=False,
    layers=BERT.layers,
    maps=BERT.maps,
    norms=BERT.norms,
    outer_norms=BERT.outer_norms,
    embeddings=BERT.embeddings,
    output="classifier",
    head=("classifier",),
    lm_head=None,
)

DEBERTA_V2 = Roles(
    decoder=False,
    layers="encoder.layer",
    maps={
        "q": "attention.self.query_proj", "k": "attention.self.key_proj", "v": "attention.self.value_proj",
        "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense",
    },
    norms=BERT.norms,
    outer_norms=("embeddings.LayerNorm", "encoder.LayerNorm", "encoder.conv.LayerNorm"),
    embeddings=(*BERT.embeddings, "encoder.rel_embeddings"),
    output="classifier",
    head=("pooler", "classifier"),
    lm_head=None,
)  # fmt: skip

DISTILBERT = Roles(
    decoder=False,
    layers="transformer.layer",
    maps={
        "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "o": "attention.out_lin",
        "up": "ffn.lin1", "down": "ffn.lin2",
    },
    norms=("sa_layer_norm", "output_layer_norm"),
    outer_norms=("embeddings.LayerNorm",),
    embeddings=("embeddings.word_embeddings", "embeddings.position_embeddings"),
    output="classifier",
    head=("pre_classifier", "classifier"),
    lm_head=None,
)  # fmt: skip

GPT2 = Roles(
    decoder=True,
    layers="h",
    maps={"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
    norms=("ln_1", "ln_2"),
    outer_norms=("ln_f",),
    embeddings=("wte", "wpe"),
)

GPT_NEOX = Roles(
    decoder=True,
    layers="layers",
    maps={"qkv": "attention.query_key_value", "o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
    norms=("input_layernorm", "post_attention_layernorm"),
    outer_norms=("final_layer_norm",),
    embeddings=("embed_in",),
)

OPT = Roles(
    decoder=True,
    layers="decoder.layers",
    maps={
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
        "up": "fc1", "down": "fc2",
    },
    norms=("self_attn_layer_norm", "final_layer_norm"),
    outer_norms=("decoder.final_layer_norm",),
    embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
)  # fmt: skip

ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
GATED = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
SANDWICH_NORMS = (*PRE_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def _llama_like(norms: tuple[str, ...] = PRE_NORMS) -> Roles:
    """Rotary decoder with a gated feed-forward network."""
    return Roles(decoder=True, layers="layers", maps=ATTENTION | GATED, norms=norms, outer_norms=("norm",), embeddings=("embed_tokens",))


def _moe(norms: tuple[str, ...] = PRE_NORMS) -> Roles:
    """Rotary decoder whose feed-forward network is a router and experts fused into three-dimensional parameters."""
    return Roles(
        decoder=True, layers="layers", maps=ATTENTION | {"router": "mlp.gate"}, norms=norms, outer_norms=("norm",),
        embeddings=("embed_tokens",), experts="mlp.experts",
        expert_parameters={"gate_up": "gate_up_proj", "down": "down_proj"},
    )  # fmt: skip


FAMILIES: dict[str, Roles] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "deberta-v2": DEBERTA_V2,
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "llama": _llama_like(),
    "mistral": _llama_like(),
    "qwen2": _llama_like(),
    "qwen3": _llama_like(PRE_NORMS + QK_NORMS),
    "gemma": _llama_like(),
    "gemma2": _llama_like(SANDWICH_NORMS),
    "gemma3_text": _llama_like(SANDWICH_NORMS + QK_NORMS),
    "mixtral": _moe(),
    "olmoe": _moe(PRE_NORMS + QK_NORMS),
}
"""`config.model_type` of transformers -> roles."""


def roles_of(model_type: str) -> Roles:
    """The roles of a `model_type`; `UserError` naming the known ones for another."""
    if model_type not in FAMILIES:
        raise UserError(f"model_type={model_type} is not in the roles table; known: {', '.join(FAMILIES)} (add a row to methods/roles.py)")
    return FAMILIES[model_type]


def family(model: nn.Module) -> Roles:
    """The roles of a transformers model, also when it is wrapped (PEFT, DDP, compiled)."""
    return roles_of(unwrap(model).config.model_type)


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model` (itself when it is one); for PEFT the same as `get_base_model()`."""
    return _unwrap(model)[1]


def layers(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, first to last."""
    return [block for _, block in _named_layers(model)]


def role_names(model: nn.Module, roles: Sequence[str]) -> list[str]:
    """Full names, as in `model.named_modules()`, of the modules that play `roles`, in layer order.

    Within a layer the order is that of the table, whatever the order of `roles`. On a family with one fused
    map (`fused(model)`) each of q, k, v and qkv names that map, once; elsewhere qkv stands for q, k and v. Roles that the
    family lacks (gate on bert) are left out. `UserError` for an unknown role, and where the family has none of those asked.
    """
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise UserError(f"role {unknown[0]} is unknown; allowed: {', '.join(ROLES)}")
    paths = _role_paths(family(model), set(roles))
    existing = {name for name, _ in model.named_modules(remove_duplicate=False)}
    names = [f"{prefix}.{path}" for prefix, _ in _named_layers(model) for path in paths if f"{prefix}.{path}" in existing]
    if not names:
        kind = unwrap(model).config.model_type
        raise UserError(f"{kind} has no {', '.join(roles)}; it has: {', '.join(available(model))}")
    return names


def available(model: nn.Module) -> list[str]:
    """The roles that the model's family has, in the order of the table."""
    roles = family(model)
    return [*roles.maps, *(["experts"] if roles.experts else [])]


def fused(model: nn.Module) -> bool:
    """Does the family keep q, k and v in one map?"""
    return "qkv" in family(model).maps


def weight_is_transposed(module: nn.Module) -> bool:
    """True where `module.weight` is (in, out) as in transformers' Conv1D; nn.Linear keeps (out, in)."""
    return isinstance(module, Conv1D)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """All linear maps (nn.Linear or Conv1D) of the blocks by full name: no embeddings, pooler, heads, routers, adapters.

    A layer wrapped by an adapter counts as its `base_layer`. Fused experts are not modules of their own:
    see `prunable_parameters`.
    """
    return {name: module for prefix, block in _named_layers(model) for name, module in _linear_maps(prefix, block)}


def prunable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of `prunable` and the fused expert parameters (experts, out, in), by full parameter name."""
    weights = {f"{name}.weight": module.get_parameter("weight") for name, module in prunable(model).items()}
    return weights | expert_parameters(model)


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The fused expert parameters (experts, out, in) by full name; empty for a dense family. gate_up stacks gate over up."""
    roles = family(model)
    if roles.experts is None:
        return {}
    paths = [f"{roles.experts}.{name}" for name in roles.expert_parameters.values()]
    return {f"{prefix}.{path}": block.get_parameter(path) for prefix, block in _named_layers(model) for path in paths}


def head_names(model: nn.Module) -> set[str]:
    """Names, as in `model.named_parameters()`, of the task head's parameters; empty for a causal language model.

    Under PEFT's `modules_to_save` these are the trained copy's names, not those of the unused original.
    """
    roles = family(model)
    prefix, inner = _unwrap(model)
    if not _has(inner, roles.output):
        return set()
    parts = [_join(prefix, path) for path in roles.head]
    if roles.pooler:
        parts.append(_join(_backbone(model)[0], roles.pooler))
    starts = tuple(f"{part}." for part in parts)
    return {name for name, _ in model.named_parameters() if name.startswith(starts) and ".original_module." not in name}


def output_layer(model: nn.Module) -> nn.Module:
    """The module whose input are the features of a probe: bert's `classifier` (batch, d), roberta's `classifier` and a
    decoder's `score` (batch, tokens, d). `UserError` for a model without a task head."""
    path = family(model).output
    inner = unwrap(model)
    if not _has(inner, path):
        raise UserError(f"{type(inner).__name__} has no task head; load it for a classification task")
    return inner.get_submodule(path)


def lm_head(model: nn.Module) -> nn.Module | None:
    """The unembedding of a causal language model, or None where the model has none."""
    path = family(model).lm_head
    inner = unwrap(model)
    return inner.get_submodule(path) if path and _has(inner, path) else None


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """All normalisations of the backbone by full name: outside the layers first, then layer by layer."""
    roles = family(model)
    found = _existing(*_backbone(model), roles.outer_norms)
    for prefix, block in _named_layers(model):
        found |= _existing(prefix, block, roles.norms)
    return found


def embeddings(model: nn.Module) -> dict[str, nn.Module]:
    """The embedding tables (words, positions, types) by full name."""
    return _existing(*_backbone(model), family(model).embeddings)


def _unwrap(model: nn.Module) -> tuple[str, PreTrainedModel]:
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            return name, module
    raise UserError(f"{type(model).__name__} holds no transformers model; the roles table knows: {', '.join(FAMILIES)}")


def _backbone(model: nn.Module) -> tuple[str, nn.Module]:
    prefix, inner = _unwrap(model)
    bare = inner.base_model is inner
    return (prefix if bare else _join(prefix, inner.base_model_prefix)), inner.base_model


def _named_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    path = family(model).layers
    prefix, backbone = _backbone(model)
    blocks = backbone.get_submodule(path)
    return [(_join(prefix, f"{path}.{index}"), block) for index, block in blocks.named_children()]


def _role_paths(roles: Roles, asked: set[str]) -> list[str]:
    if "qkv" in roles.maps and asked & {"q", "k", "v"}:
        asked = asked | {"qkv"}
    if "qkv" in asked:
        asked = asked | {"q", "k", "v"}
    paths = [path for role, path in roles.maps.items() if role in asked]
    return paths + ([roles.experts] if roles.experts and "experts" in asked else [])


def _linear_maps(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, (nn.Linear, Conv1D)):
        yield prefix, module
    elif isinstance(base := getattr(module, "base_layer", None), nn.Module):
        yield from _linear_maps(f"{prefix}.base_layer", base)
    else:
        for name, child in module.named_children():
            yield from _linear_maps(f"{prefix}.{name}", child)


def _existing(prefix: str, root: nn.Module, paths: Sequence[str]) -> dict[str, nn.Module]:
    return {_join(prefix, path): root.get_submodule(path) for path in paths if _has(root, path)}


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix else path
