"""The packed export: every tensor of a checkpoint bit for bit, its bytes by hand, patterns found in transposed maps too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import sparse_export
from methods.maths.masks import layer_mask, nm_mask
from methods.roles import prunable_parameters, weight_is_transposed
from methods.spec import nm_pattern
from tests.methods.fakes import build


def pruned(name: str, folder: Path, pattern: str, sparsity: float, dtype: torch.dtype) -> None:
    """The smallest weights of every matrix multiplied by 0, which makes some zeros negative; N:M along the inputs."""
    model = build(name, classify=False)
    nm = nm_pattern("pattern", pattern)
    for key, weight in prunable_parameters(model).items():
        flipped = weight_is_transposed(model.get_submodule(key.rpartition(".")[0]))
        scores = weight.detach().abs().mT if flipped else weight.detach().abs()
        mask = nm_mask(scores, *nm) if nm else layer_mask(scores, sparsity)
        weight.data *= mask.mT if flipped else mask
    model.to(dtype).save_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.5), ("2:4", 0.5), ("1:4", 0.75)])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama", "tiny_mixtral"])
def test_tensors_come_back_bit_for_bit_from_fewer_bytes(
    name: str, pattern: str, sparsity: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    pruned(name, tmp_path / "model", pattern, sparsity, dtype)
    told = sparse_export.write(tmp_path / "model", tmp_path / "packed")
    dense, again = load_file(tmp_path / "model" / "model.safetensors"), sparse_export.unpacked(tmp_path / "packed")
    assert dense.keys() == again.keys()
    for key, tensor in dense.items():
        assert again[key].dtype == tensor.dtype and again[key].shape == tensor.shape
        assert torch.equal(again[key].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    assert told["bytes"] == (tmp_path / "packed").stat().st_size
    zeros = {key for key, tensor in dense.items() if (tensor == 0).float().mean() > 0.4 and tensor.ndim > 1}
    kinds = {sparse_export.layouts(tmp_path / "packed")[key].kind for key in zeros}
    assert kinds == ({"nm"} if pattern == "1:4" else {"mask"})


def test_the_bytes_are_values_masks_and_signs(tmp_path: Path) -> None:
    pruned("tiny_llama", tmp_path / "model", "unstructured", 0.5, torch.float32)
    told = sparse_export.write(tmp_path / "model", tmp_path / "packed")
    model = build("tiny_llama", classify=False)
    weights = [p.numel() for p in prunable_parameters(model).values()]
    rest = sum(p.numel() for p in model.parameters()) - sum(weights)
    numbers = 4 * rest + sum(4 * n // 2 + n // 8 + n // 16 for n in weights)  # half the zeros were negative weights
    assert numbers <= told["bytes"] <= numbers + 10_000


def test_a_dense_model_stays_dense(tmp_path: Path) -> None:
    build("tiny_llama", classify=False).save_pretrained(tmp_path / "model")
    sparse_export.write(tmp_path / "model", tmp_path / "packed")
    assert {layout.kind for layout in sparse_export.layouts(tmp_path / "packed").values()} == {"dense"}
