"""NormalFloat codebooks against the published NF4 values, and blockwise rounding against a search over all codes."""

import pytest
import torch

from methods.maths.normal_float import codebook, round_to_normal_float

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def test_four_bits_are_the_published_codes() -> None:
    assert torch.allclose(codebook(4), torch.tensor(NF4), atol=1e-6)


def test_two_bits_are_those_of_loftq() -> None:
    assert torch.allclose(codebook(2), torch.tensor([-1, 0, 0.338, 1]), atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shape", [(8, 16), (5, 7)])
def test_every_entry_goes_to_the_nearest_code_of_its_block(bits: int, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    rounded = round_to_normal_float(weight, bits, block=16).flatten()
    for start in range(0, weight.numel(), 16):
        block = weight.flatten()[start : start + 16]
        levels = codebook(bits) * block.abs().max()
        nearest = levels[(block[:, None] - levels).abs().argmin(1)]
        assert torch.allclose(rounded[start : start + 16], nearest, atol=1e-6)


def test_a_block_of_zeros_stays_zero() -> None:
    weight = torch.zeros(4, 16)
    weight[0, 0] = 2.0
    assert torch.equal(round_to_normal_float(weight, 4, block=16), weight)


def test_meta_tensors_keep_their_shape() -> None:
    assert round_to_normal_float(torch.empty(5, 7, device="meta"), 4).shape == (5, 7)
