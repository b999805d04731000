from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.predict.work._workload import FAMILIES, Workload


def workload(**changes: Any) -> Workload:
    settings: dict[str, Any] = {
        "family": "CNN",
        "batch_size": 32,
        "num_params": 1000,
        "forward_flops_per_example": 2e6,
    }
    return Workload(**(settings | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -3}, "got -3"),
        ({"precision_bits": 8}, "precision must be 32, or 16 for mixed precision, got 8"),
        ({"family": "GAN"}, "family must be one of CNN"),
        ({"num_params": -1}, "must not be negative"),
        ({"dataset_size": -1}, "must not be negative"),
        ({"forward_flops_per_example": float("nan")}, "finite"),
        ({"forward_flops_per_example": -1.0}, "finite and >= 0, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(**changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_taken(family: str) -> None:
    assert workload(family=family).family == family


@pytest.mark.parametrize(
    ("optimizer", "precision", "state", "total"),
    [("SGD", 32, 4000, 8000), ("SGD", 16, 4000, 12000), ("AdamW", 16, 8000, 16000)],
)
def test_state_bytes_follow_the_tables(
    optimizer: str, precision: int, state: int, total: int
) -> None:
    work = workload(optimizer=optimizer, precision_bits=precision)
    assert (work.optimizer_state_bytes, work.total_state_bytes) == (state, total)


@given(batch=st.integers(1, 10_000), size=st.integers(0, 10**7))
def test_flops_and_steps_follow_the_batch(batch: int, size: int) -> None:
    work = workload(batch_size=batch, dataset_size=size)
    assert work.train_flops_per_batch == batch * 3 * 2e6
    assert (work.steps_per_epoch - 1) * batch < size <= work.steps_per_epoch * batch or not size


def test_another_batch_size_drops_what_only_a_trace_knows() -> None:
    from paceline.predict.work._workload import LayerWork

    layer = LayerWork(name="a", forward_flops=1.0, moved_bytes=1.0, num_params=1)
    work = workload(layers=(layer,))
    assert work.with_batch_size(32) is work
    assert work.with_batch_size(64).layers == ()
