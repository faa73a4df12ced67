"""Loads a model and its tokenizer from wherever they are, with a task head that depends on the seed alone."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import logging as hf_logging

from harness.config import ModelConfig
from harness.seeding import generator
from harness.tiny import tokenizer_for
from harness.weights import ORDER, fingerprint, identifier, local_folder
from methods.base import ModelSpec
from methods.roles import head_names, roles_of
from methods.spec import UserError, choice
from tasks.base import Head

DTYPES = ("float32", "bfloat16", "float16")
MODEL_SEED = 0
"""Seed of the weights of a from-config model: fixed, so that the run's seed never changes the 'pretrained' model."""


class Sources(Protocol):
    """Where things may be found (see `tasks.sources`)."""

    data_dir: Any
    assets: Any
    offline: bool


def load(
    config: ModelConfig, head: Head | None, spec: ModelSpec, seed: int, sources: Sources
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """The model in eval mode on the CPU, its tokenizer (right padding), and where the weights came from.

    With a `head` it is a sequence classifier (regressor), else a causal language model, of an encoder a masked one. Head
    parameters that the checkpoint lacks are drawn from (seed, "head"). The third value is plain JSON: `source`, `id`, `revision`,
    `fingerprint`, `overlap` where it is known, and the parameter names `missing` (drawn here) and `unexpected` (in the checkpoint,
    unused). `UserError` for what cannot be loaded.
    """
    choice("dtype", spec.dtype, DTYPES)
    with _quiet(), _explained(config):
        settings = _settings(config, head, spec, sources)
        tokenizer = _tokenizer(config, sources)
        model, report = _random(settings, head, spec) if config.source == "config" else _pretrained(config, settings, head, spec, sources)
    initialise_head(model, seed, report["missing"])
    if roles_of(settings.model_type).decoder:
        _pad(model, tokenizer)
    revision = config.revision or getattr(settings, "_commit_hash", None)
    origin = {"source": config.source, "id": config.id, "revision": revision}
    known = {"overlap": dict(config.overlap)} if config.overlap else {}
    return model.eval(), tokenizer, origin | {"fingerprint": fingerprint(config, sources.assets, sources.data_dir)} | report | known


def from_folder(
    folder: Path, config: ModelConfig, head: Head | None, dtype: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A checkpoint in a local folder in the form that `load` gives the model `config`: in eval mode, on the CPU.

    The second value names what is `missing` (or of another shape) and `unexpected`; safetensors alone are read, no code.
    """
    options = {"trust_remote_code": False, "local_files_only": True}
    with _quiet():
        settings = _with_head(config, AutoConfig.from_pretrained(folder, **options), head)
        model, report = _auto(head, settings).from_pretrained(
            folder, config=settings, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    if roles_of(settings.model_type).decoder:
        _pad(model, tokenizer)
    missing = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    return model.eval(), {"missing": sorted(missing), "unexpected": sorted(report["unexpected_keys"])}


def on_meta(config: ModelConfig, head: Head | None) -> PreTrainedModel:
    """The architecture without weights (meta device), for counting; reads no file and no network."""
    settings = _with_head(config, AutoConfig.for_model(**config.architecture), head)
    with torch.device("meta"), _quiet():
        return _auto(head, settings).from_config(settings)


def initialise_head(model: PreTrainedModel, seed: int, missing: Collection[str]) -> list[str]:
    """Draw the head parameters named in `missing`: weights from N(0, initializer_range^2), biases 0.

    They depend on the seed and on their shapes only: equal for every method, whatever was drawn before. Returns their names.
    """
    draws = generator(seed, "head")
    settings = model.config
    std = getattr(settings, "initializer_range", None) or settings.init_std
    fresh = head_names(model) & set(missing)
    drawn = [(name, parameter) for name, parameter in model.named_parameters() if name in fresh]
    with torch.no_grad():
        for _, parameter in drawn:
            values = torch.zeros(parameter.shape) if parameter.ndim == 1 else torch.normal(0.0, std, parameter.shape, generator=draws)
            parameter.copy_(values)
    return [name for name, _ in drawn]


def take_backbone(model: PreTrainedModel, other: nn.Module) -> None:
    """Give a classifier the backbone of another one of the same architecture, in place; its own head stays.

    Raises `UserError` where the two do not have the same backbone, as after a method that changes shapes.
    """
    heads, given = head_names(model), other.state_dict()
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in heads}
    if unlike := [name for name, tensor in own.items() if name not in given or given[name].shape != tensor.shape]:
        raise UserError(f"task.init: the finished model has no {unlike[0]} of this shape; a method that changes shapes has no task.init")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(given[name])


def _settings(config: ModelConfig, head: Head | None, spec: ModelSpec, sources: Sources) -> PreTrainedConfig:
    if config.source == "config":
        settings = AutoConfig.for_model(**config.architecture)
    else:
        place, options = _place(config, sources)
        settings = AutoConfig.from_pretrained(place, **options)
    for key, value in spec.config_edits.items():
        setattr(settings, key, value)
    return _with_head(config, settings, head)


def _with_head(config: ModelConfig, settings: PreTrainedConfig, head: Head | None) -> PreTrainedConfig:
    decoder = roles_of(settings.model_type).decoder
    if decoder != (config.family == "decoder"):
        raise UserError(f"model {config.name} is given as {config.family}, but {settings.model_type} is not one; correct model.family")
    if head is None and not decoder and type(settings) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(f"model {config.name}: {settings.model_type} has no masked language model in transformers; take another model")
    if head is not None and type(settings) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"model {config.name}: {settings.model_type} has no classifier in transformers; take another model")
    if head is not None:
        settings.update({"num_labels": head.num_labels, "problem_type": head.problem_type})
    return settings


def _place(config: ModelConfig, sources: Sources) -> tuple[str, dict[str, Any]]:
    if config.source == "hub":
        options = {"revision": config.revision or "main", "trust_remote_code": False, "local_files_only": bool(sources.offline)}
        return identifier(config), options
    return str(local_folder(config, sources.assets, sources.data_dir)), {"trust_remote_code": False, "local_files_only": True}


def _auto(head: Head | None, settings: PreTrainedConfig) -> type[_BaseAutoModelClass]:
    if head is not None:
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if roles_of(settings.model_type).decoder else AutoModelForMaskedLM


def _pretrained(
    config: ModelConfig, settings: PreTrainedConfig, head: Head | None, spec: ModelSpec, sources: Sources
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    place, options = _place(config, sources)
    model, report = _auto(head, settings).from_pretrained(
        place, config=settings, dtype=getattr(torch, spec.dtype), attn_implementation=spec.attention,
        use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options,
    )  # fmt: skip
    missing = set(report["missing_keys"]) | {key for key, *_ in report["mismatched_keys"]}
    lost = sorted(missing - head_names(model))
    if lost:
        raise UserError(f"model {config.name}: the checkpoint lacks {len(lost)} weights (first: {lost[0]}); take a complete one")
    return model, {"missing": sorted(missing), "unexpected": sorted(report["unexpected_keys"])}


def _random(settings: PreTrainedConfig, head: Head | None, spec: ModelSpec) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    def build(dtype: str) -> PreTrainedModel:
        return _auto(head, settings).from_config(settings, dtype=getattr(torch, dtype), attn_implementation=spec.attention)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        model = build("float32")
        if spec.dtype != "float32":
            exact, model = model, build(spec.dtype)
            model.load_state_dict(exact.state_dict())
    return model, {"missing": sorted(head_names(model)), "unexpected": []}


def _tokenizer(config: ModelConfig, sources: Sources) -> PreTrainedTokenizerBase:
    if config.source == "config":
        return tokenizer_for(config.architecture, config.max_length)
    place, options = _place(config, sources)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = config.max_length
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A decoder's classifier reads the last token that is not padding, so model and tokenizer must agree on it."""
    model.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _explained(config: ModelConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        at = f"{config.id} at {config.revision or 'main'}" if config.source == "hub" else str(config.id)
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"model {config.name} ({config.source}: {at}) cannot be read: {reason}; models come from: {ORDER}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading report and no progress bars: what is missing or unexpected is returned instead."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
