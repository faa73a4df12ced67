"""What tests of the sparse techniques share: dense gradients, plain SGD, and the ledger of a technique on MiniLM's architecture."""

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness.ledger import memory_ledger, optimizer_state_bytes
from harness.registry import method_class
from methods.base import Batch, Method
from methods.roles import weight_is_transposed
from tests.methods.fakes import FOLDER, FakeContext

MAPS = ["q", "k", "v", "o", "gate", "up", "down"]
ROWS, LENGTH = 4, 64
WORDS = 200
"""Few, so that the embeddings, which are the same for all techniques, stay small."""
LAYERS = 2
"""What a technique holds grows with the layers alike; the bench has all six."""


def still(model: nn.Module) -> nn.Module:
    """The model without dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout_prob", "attention_dropout", "drop_prob"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    model.config.attention_probs_dropout_prob = model.config.attn_pdrop = 0.0
    return model


def dense_slopes(model: nn.Module, names: list[str], batch: Batch) -> dict[str, Tensor]:
    """dL/dW (out, in) by the name of a linear map, in eval mode."""
    model.eval()(**batch).loss.backward()
    slopes = {name: model.get_submodule(name).weight.grad for name in names}
    return {name: slope.mT if weight_is_transposed(model.get_submodule(name)) else slope for name, slope in slopes.items()}


def sgd(model: nn.Module, rows: list[Batch], lr: float = 0.5) -> nn.Module:
    """Plain descent on what requires gradients, in the mode that the model is in."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for batch in rows:
        slopes = torch.autograd.grad(model(**batch).loss, trained)
        with torch.no_grad():
            for p, slope in zip(trained, slopes, strict=True):
                p.sub_(lr * slope)
    return model


def minilm(**changes: Any) -> nn.Module:
    """MiniLM's architecture with few words and random weights, without dropout, whose masks are activations too."""
    return architecture("minilm", vocab_size=WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes)


def architecture(name: str, **changes: Any) -> nn.Module:
    """A classifier of the architecture of `conf/model/<name>.yaml` with random weights."""
    given = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))["architecture"]
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**given | changes, num_labels=2))


def configured(slug: str, **changes: Any) -> Method:
    """The method as its YAML says, on all seven maps where it has targets."""
    cls = method_class(slug)
    given = OmegaConf.to_container(OmegaConf.load(FOLDER.parent / "method" / f"{slug}.yaml"))
    names = {f.name for f in fields(cls.Config)}
    values = {key: given[key] for key in names} | {key: value for key, value in {"targets": MAPS}.items() if key in names}
    return cls(cls.Config(**values | changes))


def one_batch() -> Batch:
    """Random tokens without padding."""
    ids = torch.randint(6, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % 2}


def ledger_of(method: Method, model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The harness's ledger after one step; `trained` = activations, gradients and optimizer state together."""
    ctx = FakeContext(method, [batch], lr=1e-4)
    ctx.total_steps = 1000  # nothing ends within this measurement
    model = method.fit(method.prepare(model, ctx), ctx)
    ledger = memory_ledger(model, batch, lambda m, b: method.loss(m, b, ctx), optimizer_state_bytes(ctx.optimizer))
    return ledger | {"trained": ledger["activations"] + ledger["gradients"] + ledger["optimizer"]}


@cache
def _minilm_ledger(slug: str, changes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return ledger_of(configured(slug, **dict(changes)), minilm(num_hidden_layers=LAYERS), one_batch())


def trained_bytes(slug: str, **changes: Any) -> dict[str, Any]:
    """`ledger_of` a technique on `LAYERS` of `minilm`, measured once."""
    return _minilm_ledger(slug, tuple(sorted(changes.items())))
