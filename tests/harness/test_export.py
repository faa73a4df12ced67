"""An export is proved by a reload: other weights, other classes and truncated files are refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from harness import export
from harness.tiny import byte_tokenizer
from methods.base import Method


def model() -> BertForSequenceClassification:
    """A tiny BERT."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=264, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    ).eval()


def test_an_untouched_export_verifies_with_no_difference(tmp_path: Path) -> None:
    export.export(model(), byte_tokenizer(), tmp_path / "model")
    assert export.verify(tmp_path / "model", "cpu") == {"class": "BertForSequenceClassification", "max_abs_difference": 0.0}


def test_what_required_gradients_when_it_was_measured_does_so_after_a_reload(tmp_path: Path) -> None:
    """The flags choose kernels, and so last digits."""
    measured = model()
    measured.bert.requires_grad_(False)
    export.export(measured, byte_tokenizer(), tmp_path / "model")
    again = export.as_measured(tmp_path / "model", torch.float32, None)
    flags = {name: parameter.requires_grad for name, parameter in measured.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in again.named_parameters()} == flags
    assert set(flags.values()) == {True, False} and not again.training
    export.probe_file(tmp_path / "model").unlink()
    assert all(parameter.requires_grad for parameter in export.as_measured(tmp_path / "model", torch.float32, None).parameters())


def test_an_export_with_other_weights_is_refused(tmp_path: Path) -> None:
    export.export(model(), byte_tokenizer(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"] = tensors["classifier.weight"] + 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(export.ExportError, match="differ by"):
        export.verify(tmp_path / "model", "cpu")


def test_nan_logits_never_verify(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.classifier.bias.fill_(float("nan"))
    export.export(broken, byte_tokenizer(), tmp_path / "model")
    with pytest.raises(export.ExportError, match="nan"):
        export.verify(tmp_path / "model", "cpu")


def test_a_class_that_transformers_does_not_ship_is_refused(tmp_path: Path) -> None:
    class Wrapped(BertForSequenceClassification):
        """Not stock."""

    with pytest.raises(export.ExportError, match="Wrapped, not a stock"):
        export.export(Wrapped(model().config), byte_tokenizer(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Squash(nn.Module):
    """tanh(gain * logits): no linear map does this."""

    def __init__(self, base: nn.Module, gain: Tensor) -> None:
        super().__init__()
        self.base_layer, self.gain = base, nn.Parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * self.base_layer(x))


class Squashed(Method):
    """Puts `Squash` around the classifier."""

    @dataclass
    class Config:
        """One option, which the files must carry."""

        gain: float

    def put(self, stock: nn.Module) -> nn.Module:
        return self.attach(stock, {"gain": torch.tensor([self.config.gain])})

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        tensors = {"gain": model.classifier.gain.detach()}
        model.classifier = model.classifier.base_layer
        return model, tensors

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        assert self.config.gain == 3.0
        model.classifier = Squash(model.classifier, tensors["gain"])
        return model


@pytest.fixture
def squashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The export of a model that does not fold, with frozen and trained parameters."""
    monkeypatch.setattr(export, "method_class", {"squashed": Squashed}.__getitem__)
    method = Squashed(Squashed.Config(3.0))
    measured = method.put(model())
    measured.bert.requires_grad_(False)
    folder = tmp_path / "model"
    stock = export.export(measured, byte_tokenizer(), folder, export.Unfolded("squashed", method))
    assert type(stock.classifier) is nn.Linear
    return folder


def test_what_does_not_fold_lies_beside_the_stock_checkpoint_and_comes_back(squashed: Path) -> None:
    assert export.verify(squashed, "cpu") == {"class": "BertForSequenceClassification", "max_abs_difference": 0.0, "adapter": "squashed"}
    expected = load_file(export.probe_file(squashed))["logits"]
    again = export.as_measured(squashed, torch.float32, None)
    assert torch.equal(export.probe_logits(again), expected)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        "classifier.gain", "classifier.base_layer.weight", "classifier.base_layer.bias",
    }  # fmt: skip
    plain = BertForSequenceClassification.from_pretrained(squashed).eval()
    assert torch.allclose(torch.tanh(3.0 * export.probe_logits(plain)), expected, atol=1e-6)


def test_an_adapter_is_reloaded_in_the_dtype_that_is_asked(squashed: Path) -> None:
    assert {p.dtype for p in export.reload(squashed, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_other_adapter_weights_are_refused_and_change_the_hash(squashed: Path) -> None:
    before = export.weights_hash(squashed)
    path = squashed / "adapter.safetensors"
    save_file({"gain": load_file(path)["gain"] + 0.1}, path)
    assert export.weights_hash(squashed) != before
    with pytest.raises(export.ExportError, match="differ by"):
        export.verify(squashed, "cpu")
