from itertools import product

import numpy as np
import pytest
import torch

from paceline.torch.guard._checksum import ROW, Checksums

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.int8,
    torch.bool,
    torch.complex64,
)


def checksum(tensor: torch.Tensor) -> int:
    return int(Checksums().of(tensor))


def random(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)


def flip_bit(tensor: torch.Tensor, byte: int, bit: int) -> None:
    tensor.view(-1).view(torch.uint8)[byte] ^= 1 << bit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_values", [1, 3, 8, 1001])
def test_every_flipped_bit_of_a_sample_is_found(dtype: torch.dtype, num_values: int) -> None:
    tensor = random(dtype, num_values)
    before = checksum(tensor)
    for byte in np.random.default_rng(0).integers(tensor.nbytes, size=40).tolist():
        for bit in range(1 if dtype == torch.bool else 8):
            flip_bit(tensor, byte, bit)
            assert checksum(tensor) != before
            flip_bit(tensor, byte, bit)
    assert checksum(tensor) == before


@pytest.mark.parametrize("num_values", [ROW - 1, 2 * ROW, 2 * ROW + 2, 7 * ROW + 5])
def test_bits_are_found_in_every_row_of_a_long_tensor(
    num_values: int, device: torch.device
) -> None:
    tensor = random(torch.float32, num_values).to(device)
    before = checksum(tensor)
    for byte in (0, 4 * ROW - 1, tensor.nbytes // 2, tensor.nbytes - 1):
        flip_bit(tensor, min(byte, tensor.nbytes - 1), 7)
        assert checksum(tensor) != before
        flip_bit(tensor, min(byte, tensor.nbytes - 1), 7)
    assert checksum(tensor) == before == checksum(tensor.cpu())


def test_changes_that_cancel_in_a_plain_sum_are_found() -> None:
    tensor = torch.arange(4.0 * ROW)
    before = checksum(tensor)
    for one, other in ((0, 2), (1, 3 * ROW), (2 * ROW, 3 * ROW), (5, 4 * ROW - 3)):
        changed = tensor.clone()
        changed[[one, other]] = tensor[[other, one]]
        assert checksum(changed) != before
        for byte, bit in product((0, 3, 4, 7), (0, 6, 7)):
            opposite = tensor.clone()
            flip_bit(opposite, 4 * one + byte, bit)
            flip_bit(opposite, 4 * other + byte, bit)
            assert checksum(opposite) != before


def test_rows_that_change_places_are_found() -> None:
    tensor = random(torch.float64, 4, ROW)
    assert checksum(tensor[[0, 2, 1, 3]]) != checksum(tensor)
    assert checksum(tensor[:, torch.arange(ROW).roll(1)]) != checksum(tensor)


def test_signed_zeros_and_nans_count_by_their_bits() -> None:
    assert checksum(torch.tensor([0.0])) != checksum(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert checksum(nan) == checksum(nan.clone())


@pytest.mark.parametrize("shape", [(), (0,), (3, 5, 4, 4)])
def test_the_layout_in_memory_does_not_matter(shape: tuple[int, ...]) -> None:
    tensor = random(torch.float32, *shape)
    inside = torch.cat([torch.zeros(1), tensor.reshape(-1)])[1:].view(shape)
    assert checksum(inside) == checksum(tensor)
    if tensor.ndim == 4:
        assert checksum(tensor.to(memory_format=torch.channels_last)) == checksum(tensor)


def test_a_parameter_stays_as_it_is() -> None:
    parameter = torch.nn.Parameter(random(torch.float32, 5))
    before = parameter.clone()
    assert not Checksums().of(parameter).requires_grad
    assert torch.equal(parameter, before)
    assert parameter.grad is None
