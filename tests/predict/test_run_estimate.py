from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.cost import Link
from paceline.predict._conformal import Estimate
from paceline.predict.run._estimate import RunSetup, estimate_run, predicted_job, ring_link
from paceline.predict.step import StepEstimate
from paceline.predict.work._devices import Device
from paceline.predict.work._workload import LayerWork, Workload

LAYERS = tuple(
    LayerWork(name=str(index), forward_flops=1e9 * (index + 1), moved_bytes=1e6, num_params=50_000)
    for index in range(6)
)
WORK = Workload(
    family="MLP",
    batch_size=100,
    num_params=300_000,
    forward_flops_per_example=2.1e8,
    layers=LAYERS,
    num_kernels=6,
)
OWN_STEP = StepEstimate(compute=Estimate(0.1, 0.08, 0.15))


def test_one_worker_adds_up_by_hand() -> None:
    setup = RunSetup(dataset_size=1001, epochs=Estimate(2, 2, 2), price_per_hour=3.6)
    found = estimate_run(WORK, OWN_STEP, setup)
    assert found.step == OWN_STEP.compute
    assert found.epoch is not None
    ends = (found.epoch.median, found.epoch.low, found.epoch.high)
    assert ends == pytest.approx((1.1, 0.88, 1.65))
    assert found.run is not None
    assert found.run.median == pytest.approx(2.2)
    assert found.cost is not None
    assert found.cost.median == pytest.approx(2.2 * 3.6 / 3600)
    assert (found.source, found.exposed_s) == ("predicted", 0.0)


def test_waiting_for_the_loader_adds_to_the_step_and_can_bound_it() -> None:
    times = replace(OWN_STEP, total=Estimate(0.4, 0.28, 0.65))
    assert times.loader_wait.median == pytest.approx(0.3)
    found = estimate_run(WORK, times, RunSetup())
    assert found.step == times.total
    fast = ring_link(1e15, 2, hop_latency_s=0.0)
    several = estimate_run(WORK, times, RunSetup(num_workers=2, link=fast))
    assert several.step.median == pytest.approx(0.4)
    assert several.step.high == pytest.approx(0.4 + (0.05**2 + 0.2**2) ** 0.5)
    assert found.bound_by == "loader"
    assert "loader" in found.advice


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "workers must be at least 1, got 0"),
        ({"num_workers": 4}, "4 workers need a link, such as 100Gbit/s"),
        ({"price_per_hour": -1.0}, "price must not be negative, got -1.0"),
        ({"price_per_hour": float("nan")}, "price must not be negative"),
        ({"dataset_size": -5}, "dataset_size must not be negative, got -5"),
        ({"epochs": Estimate(-1, -1, -1)}, "epochs must not be negative"),
    ],
)
def test_a_setup_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSetup(**changes)


def test_several_workers_are_simulated_and_never_slower_than_ddp() -> None:
    link = ring_link(1e9, 8)
    found = estimate_run(WORK, OWN_STEP, RunSetup(num_workers=8, link=link, dataset_size=8000))
    assert found.source == "simulated"
    assert found.step.median >= 0.1
    assert found.step.median <= found.ddp_step_s + 1e-12
    assert found.epoch is not None
    assert found.epoch.median == pytest.approx(10 * found.step.median)


def test_a_slow_link_bounds_the_step() -> None:
    setup = RunSetup(num_workers=8, link=ring_link(1e6, 8))
    found = estimate_run(WORK, OWN_STEP, setup, device=Device.named("H100"))
    assert found.bound_by == "link"
    assert "the wire bounds it" in found.advice


def test_workers_need_layers() -> None:
    bare = replace(WORK, layers=())
    with pytest.raises(ValueError, match="the workload has no layers"):
        estimate_run(bare, OWN_STEP, RunSetup(num_workers=2, link=Link(0.0, 1e9)))


def test_what_does_not_fit_is_said_first() -> None:
    large = replace(WORK, num_params=10**10)
    found = estimate_run(large, OWN_STEP, RunSetup(), device=Device.named("T4"))
    assert found.advice.startswith("it does not fit with any batch")
    tight = replace(WORK, saved_bytes_per_example=1e9)
    found = estimate_run(tight, OWN_STEP, RunSetup(), device=Device.named("T4"))
    assert found.advice == "it does not fit: take at most 15 examples per step and worker"


def test_a_predicted_job_holds_the_time_and_the_gradients() -> None:
    job = predicted_job(WORK, 0.3)
    assert job.source == "predicted"
    assert job.forward_s + job.backward_s == pytest.approx(0.3)
    assert job.forward_s == pytest.approx(0.1)
    assert job.gradient_bytes == 6 * 4 * 50_000
    costs = [layer.forward_s for layer in job.layers]
    assert costs == sorted(costs)


def test_a_ring_sends_each_byte_nearly_twice() -> None:
    link = ring_link(1e9, 4, hop_latency_s=1e-6)
    assert link.bytes_per_s == pytest.approx(1e9 * 4 / 6)
    assert link.alpha_s == pytest.approx(6e-6)


@settings(max_examples=20, deadline=None)
@given(
    compute=st.floats(1e-4, 1.0),
    spread=st.floats(1.0, 3.0),
    rate=st.floats(1e7, 1e11),
    workers=st.integers(2, 64),
)
def test_estimates_stay_ordered_and_bounded(
    compute: float, spread: float, rate: float, workers: int
) -> None:
    times = StepEstimate(compute=Estimate(compute, compute / spread, compute * spread))
    setup = RunSetup(num_workers=workers, link=ring_link(rate, workers))
    found = estimate_run(WORK, times, setup, device=Device.named("A100"))
    assert found.step.low <= found.step.median <= found.step.high
    assert found.step.median >= compute * (1 - 1e-9)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares[found.bound_by] == max(found.shares.values())
