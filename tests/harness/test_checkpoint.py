"""Checkpoints: sealed with sizes, restored exactly, refused when anything is missing."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from harness import checkpoint, optimizers


def small() -> nn.Module:
    """A linear map with a buffer."""
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.ones(2, 3, dtype=torch.bool))
    return model


def test_a_folder_verifies_until_any_of_its_files_is_truncated_or_gone(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"1234")
        (folder / "b.json").write_text("{}")

    for victim in ("a.bin", "b.json", checkpoint.SEAL):
        folder = tmp_path / victim
        checkpoint.write_sealed(folder, fill)
        assert checkpoint.verified(folder)
        (folder / victim).write_bytes((folder / victim).read_bytes()[:1])
        assert not checkpoint.verified(folder)
        (folder / victim).unlink()
        assert not checkpoint.verified(folder)


def test_a_failed_write_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    checkpoint.write_sealed(folder, lambda aside: (aside / "x").write_text("old") and None)

    def fails(aside: Path) -> None:
        (aside / "x").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_sealed(folder, fails)
    assert checkpoint.verified(folder)
    assert (folder / "x").read_text() == "old"


def test_trained_tensors_are_trainable_parameters_and_buffers_and_come_back(tmp_path: Path) -> None:
    model = small()
    model.bias.requires_grad_(False)
    saved = checkpoint.trained_tensors(model)
    assert set(saved) == {"weight", "buffer:mask"}
    checkpoint.save_tensors(tmp_path / "w.safetensors", saved)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
        model.mask.zero_()
    checkpoint.restore_tensors(model, load_file(tmp_path / "w.safetensors"))
    assert torch.equal(model.weight, before)
    assert model.mask.all()


def test_a_tensor_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"checkpoint shape \(1, 3\), model shape \(2, 3\)"):
        checkpoint.restore_tensors(small(), {"weight": torch.zeros(1, 3)})
    with pytest.raises(KeyError, match="lora"):
        checkpoint.restore_tensors(small(), {"lora": torch.zeros(1)})


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_an_optimizer_continues_exactly(tmp_path: Path, kind) -> None:
    def two_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for value in (1.0, -2.0):
            optimizer.zero_grad()
            (model(torch.full((1, 3), value)) ** 2).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = small()
    optimizer = kind(model.parameters())
    two_steps(model, optimizer)
    checkpoint.save_optimizer(tmp_path, optimizers.by_name(optimizer.state_dict(), optimizers.names(optimizer, model)))
    twin = small()
    twin.load_state_dict(model.state_dict())
    other = kind(twin.parameters())
    other.load_state_dict(optimizers.regroup(other, twin, checkpoint.read_optimizer(tmp_path)))
    two_steps(model, optimizer)
    two_steps(twin, other)
    assert torch.equal(model.weight, twin.weight)


def test_all_generators_continue_exactly(tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.standard_normal()
    checkpoint.save_generators(tmp_path)
    draws = [random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()]
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    checkpoint.load_generators(tmp_path)
    assert [random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item()] == draws
