"""An export is proved by a reload: other weights, other classes and truncated files are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from harness import export
from harness.tiny import byte_tokenizer


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
