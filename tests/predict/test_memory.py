from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.predict.work._devices import Device
from paceline.predict.work._memory import estimate_memory, usable_bytes
from paceline.predict.work._sharding import LEVELS, Sharding
from paceline.predict.work._workload import MemoryMoment, Workload

MOMENTS = (
    MemoryMoment(phase="backward", bytes_per_example=3e6, other_bytes=1_000_000),
    MemoryMoment(phase="backward", bytes_per_example=1e6, other_bytes=4_500_000),
    MemoryMoment(phase="optimizer", bytes_per_example=1e5, other_bytes=5_000_000),
)
WORK = Workload(
    family="CNN",
    batch_size=10,
    num_params=1_000_000,
    forward_flops_per_example=1e9,
    optimizer="AdamW",
    moments=MOMENTS,
)
PARAM_BYTES = 4_000_000


def test_the_parts_add_up() -> None:
    memory = estimate_memory(WORK)
    assert (memory.parameters, memory.optimizer, memory.buckets) == (4_000_000, 8_000_000, 0)
    assert memory.fullest == MOMENTS[0]
    assert memory.peak == 43_000_000


@pytest.mark.parametrize(
    ("batch_size", "foreach", "phase", "peak"),
    [
        (1, True, "optimizer", 12_000_000 + 100_000 + 4_500_000 + PARAM_BYTES),
        (1, False, "backward", 12_000_000 + 1_000_000 + 4_500_000),
        (2, False, "backward", 12_000_000 + 6_000_000 + 1_000_000),
        (4, True, "backward", 12_000_000 + 12_000_000 + 1_000_000),
    ],
)
def test_the_fullest_moment_follows_the_batch(
    batch_size: int, foreach: bool, phase: str, peak: int
) -> None:
    memory = estimate_memory(WORK.with_batch_size(batch_size), foreach=foreach)
    assert (memory.fullest.phase, memory.peak) == (phase, peak)


@pytest.mark.parametrize(
    ("optimizer", "kept", "made"),
    [
        ("SGD", 1.0, 0),
        ("Adam", 2.0, 1),
        ("RMSprop", 1.0, 1),
        ("Adagrad", 1.0, 2),
        ("Adafactor", 0.01, 1),
    ],
)
def test_each_optimizer_keeps_and_makes_its_own(optimizer: str, kept: float, made: int) -> None:
    memory = estimate_memory(replace(WORK, optimizer=optimizer))
    assert memory.optimizer == kept * PARAM_BYTES
    assert memory.moments[-1].other_bytes == max(4_500_000 + made * PARAM_BYTES, 5_000_000)


def test_several_workers_hold_gradients_in_buckets_too() -> None:
    one, two = (estimate_memory(WORK, num_workers=number) for number in (1, 2))
    assert two.peak - one.peak == two.buckets == PARAM_BYTES


def test_a_row_of_a_table_falls_back_to_its_proxy() -> None:
    work = replace(WORK, moments=(), activation_bytes_per_example=1e6, example_bytes=1000.0)
    memory = estimate_memory(work)
    assert memory.moments[0].bytes_per_example == 751_000
    assert memory.peak == 16_000_000 + 7_510_000
    assert estimate_memory(replace(work, precision_bits=16)).peak == memory.peak + 2_000_000


@given(
    params=st.integers(0, 10**11),
    per_example=st.floats(0, 1e10),
    batch=st.integers(1, 4096),
    row=st.sampled_from(Device.all()),
)
def test_the_largest_batch_fits_and_one_more_does_not(
    params: int, per_example: float, batch: int, row: object
) -> None:
    assert isinstance(row, Device)
    first = replace(MOMENTS[0], bytes_per_example=per_example)
    work = replace(WORK, num_params=params, batch_size=batch, moments=(first, *MOMENTS[1:]))
    largest = estimate_memory(work).largest_batch(row)
    assert estimate_memory(work).fits(row) == (batch <= largest) or abs(batch - largest) <= 1
    if largest:
        assert estimate_memory(replace(work, batch_size=largest)).peak <= usable_bytes(row) + 10
        # A relative excess of a part in 1e9 is rounding of the bytes per example.
        above = estimate_memory(replace(work, batch_size=largest + 2)).peak
        assert above > usable_bytes(row) * (1 - 1e-9)


def test_a_model_that_is_too_large_fits_with_no_batch() -> None:
    memory = estimate_memory(replace(WORK, num_params=10**10))
    assert not memory.fits(Device.named("T4"))
    assert memory.largest_batch(Device.named("T4")) == 0


def test_each_level_divides_one_thing_more() -> None:
    gradient = replace(MOMENTS[1], gradient_bytes=PARAM_BYTES)
    work = replace(WORK, moments=(MOMENTS[0], gradient, MOMENTS[2]))
    found = {}
    for level in LEVELS:
        sharding = Sharding(num_workers=4, level=level)  # type: ignore[arg-type]
        memory = estimate_memory(work, sharding=sharding, foreach=False)
        gradients = memory.moments[1].gradient_bytes
        found[level] = (memory.parameters, memory.optimizer, gradients, memory.buckets)
    whole, part = PARAM_BYTES, PARAM_BYTES // 4
    assert found == {
        "none": (whole, 2 * whole, whole, whole),
        "optimizer": (whole, 2 * part, whole, whole),
        "gradients": (whole, 2 * part, part, 0),
        "parameters": (part, 2 * part, part, 0),
    }


def test_matrices_of_a_transformer_are_divided_over_tensor_parallel_workers() -> None:
    shapes = (("h.0.weight", (1000, 900)), ("h.0.bias", (100_000,)))
    work = replace(WORK, family="Transformer", param_shapes=shapes)
    memory = estimate_memory(work, sharding=Sharding(tensor_parallel=4))
    assert memory.parameters == 4 * (900_000 // 4 + 100_000)
    assert memory.moments[0].bytes_per_example == pytest.approx(3e6 * 16 / 34)
    with pytest.raises(ValueError, match="known for Transformers, not for CNN"):
        estimate_memory(WORK, sharding=Sharding(tensor_parallel=2))


@pytest.mark.parametrize(
    "settings", [{"level": "some"}, {"num_workers": 0}, {"tensor_parallel": 0}]
)
def test_a_bad_division_is_answered_by_its_rule(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Sharding(**settings)
