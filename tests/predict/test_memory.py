from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.predict._devices import all_devices, device
from paceline.predict._memory import estimate_memory, usable_bytes
from paceline.predict._workload import Workload

WORK = Workload(
    family="CNN",
    batch_size=10,
    num_params=1_000_000,
    forward_flops_per_example=1e9,
    optimizer="AdamW",
    saved_bytes_per_example=2e6,
    working_bytes_per_example=3e6,
)


def test_the_parts_add_up() -> None:
    memory = estimate_memory(WORK)
    assert (memory.parameters, memory.gradients, memory.optimizer) == (
        4_000_000,
        4_000_000,
        8_000_000,
    )
    assert memory.activations == 30_000_000
    assert memory.peak == 46_000_000


@pytest.mark.parametrize(
    ("optimizer", "values"), [("SGD", 1.0), ("Adam", 2.0), ("RMSprop", 1.0), ("Adafactor", 0.01)]
)
def test_each_optimizer_keeps_its_own(optimizer: str, values: float) -> None:
    assert estimate_memory(replace(WORK, optimizer=optimizer)).optimizer == values * 4_000_000


def test_several_workers_hold_gradients_in_buckets_too() -> None:
    assert estimate_memory(WORK, num_workers=2).gradients == 8_000_000


def test_mixed_precision_copies_the_parameters() -> None:
    assert estimate_memory(replace(WORK, precision_bits=16)).copies == 2_000_000


def test_a_row_of_a_table_falls_back_to_its_proxy() -> None:
    work = replace(
        WORK,
        saved_bytes_per_example=0.0,
        working_bytes_per_example=0.0,
        activation_bytes_per_example=1e6,
    )
    assert estimate_memory(work).activations == 7_500_000


@given(
    params=st.integers(0, 10**11),
    per_example=st.floats(0, 1e10),
    batch=st.integers(1, 4096),
    row=st.sampled_from(all_devices()),
)
def test_the_largest_batch_fits_and_one_more_does_not(
    params: int, per_example: float, batch: int, row: object
) -> None:
    from paceline.predict._devices import Device

    assert isinstance(row, Device)
    work = replace(
        WORK,
        num_params=params,
        batch_size=batch,
        saved_bytes_per_example=per_example,
        working_bytes_per_example=1e3,
    )
    largest = estimate_memory(work).largest_batch(row)
    assert estimate_memory(work).fits(row) == (batch <= largest) or abs(batch - largest) <= 1
    if largest:
        assert estimate_memory(replace(work, batch_size=largest)).peak <= usable_bytes(row) + 10
        # A relative excess of a part in 1e9 is rounding of the bytes per example.
        above = estimate_memory(replace(work, batch_size=largest + 2)).peak
        assert above > usable_bytes(row) * (1 - 1e-9)


def test_a_model_that_is_too_large_fits_with_no_batch() -> None:
    memory = estimate_memory(replace(WORK, num_params=10**10))
    assert not memory.fits(device("T4"))
    assert memory.largest_batch(device("T4")) == 0
