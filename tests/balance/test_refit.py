from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from paceline.balance import BalanceConfig, plan_epoch, refit_workers
from paceline.balance._refit import KEPT_SHARE
from paceline.cost import Worker

UNKNOWN = (Worker(), Worker())


def measured(
    load: NDArray[np.float64], workers: tuple[Worker, ...], noise: float = 0.0
) -> NDArray[np.float64]:
    """Return how long workers take, to within a share of it."""
    speed = np.array([worker.speed for worker in workers])
    overhead_s = np.array([worker.overhead_s for worker in workers])
    factor = 1 + noise * np.random.default_rng(1).standard_normal(load.shape)
    return np.asarray((overhead_s + load / speed) * factor)


def varied_load(num_steps: int = 100) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(50.0, 150.0, (num_steps, 2))


def test_speed_and_overhead_are_recovered_from_exact_times() -> None:
    truth = (Worker(speed=2.0, overhead_s=3.0), Worker(speed=0.25))
    found = refit_workers(varied_load(8), measured(varied_load(8), truth), UNKNOWN)
    assert [worker.speed for worker in found] == pytest.approx([2.0, 0.25])
    assert [worker.overhead_s for worker in found] == pytest.approx([3.0, 0.0], abs=1e-9)


def test_noise_is_averaged_out() -> None:
    truth = (Worker(speed=2.0, overhead_s=20.0), Worker(speed=0.25, overhead_s=100.0))
    found = refit_workers(varied_load(), measured(varied_load(), truth, noise=0.02), UNKNOWN)
    assert [worker.speed for worker in found] == pytest.approx([2.0, 0.25], rel=0.04)
    assert [worker.overhead_s for worker in found] == pytest.approx([20.0, 100.0], rel=0.15)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_few_stalls_do_not_count(noise: float) -> None:
    truth = (Worker(speed=1.0, overhead_s=50.0), Worker(speed=0.5, overhead_s=50.0))
    seconds = measured(varied_load(), truth, noise)
    seconds[[3, 20, 21, 77], :] += [[3e3], [500.0], [1e3], [2e3]]
    found = refit_workers(varied_load(), seconds, UNKNOWN)
    assert [worker.speed for worker in found] == pytest.approx([1.0, 0.5], rel=0.1)
    assert [worker.overhead_s for worker in found] == pytest.approx([50.0, 50.0], rel=0.2)


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_loads_that_hardly_vary_tell_the_speed_and_keep_the_overhead(spread: float) -> None:
    load = 100.0 + spread * (varied_load() - 100.0)
    previous = (Worker(speed=1.0, overhead_s=10.0),) * 2
    truth = (Worker(speed=1.0, overhead_s=10.0), Worker(speed=0.5, overhead_s=10.0))
    found: tuple[Worker, ...] = previous
    for _ in range(20):
        found = refit_workers(load, measured(load, truth), found)
    assert [worker.overhead_s for worker in found] == pytest.approx([10.0, 10.0])
    assert [worker.speed for worker in found] == pytest.approx([1.0, 0.5], rel=1e-3)


def test_the_first_measurement_counts_fully_and_later_ones_fade_exponentially() -> None:
    fast, slow = (Worker(speed=4.0),) * 2, (Worker(speed=1.0, overhead_s=8.0),) * 2
    load = varied_load()
    found = refit_workers(load, measured(load, fast), UNKNOWN)
    assert found[0].speed == pytest.approx(4.0)
    seconds_per_cost, overhead_s = 1 / 4, 0.0
    for _ in range(3):
        found = refit_workers(load, measured(load, slow), found)
        seconds_per_cost = KEPT_SHARE * seconds_per_cost + (1 - KEPT_SHARE) * 1.0
        overhead_s = KEPT_SHARE * overhead_s + (1 - KEPT_SHARE) * 8.0
        assert 1 / found[0].speed == pytest.approx(seconds_per_cost)
        assert found[0].overhead_s == pytest.approx(overhead_s)


@pytest.mark.parametrize("counts", ["free", "equal"])
def test_three_epochs_even_out_a_threefold_slower_worker(counts: Any) -> None:
    rng = np.random.default_rng(0)
    size = np.clip(rng.lognormal(np.log(350), 1.1, 8192), 8, 2048).round()
    costs = size + size**2 / 6144
    config = BalanceConfig(batch_size=64, num_workers=2, counts=counts)
    truth = (Worker(speed=1e5), Worker(speed=1e5 / 3, overhead_s=0.002))
    workers = None
    idle_shares = []
    for epoch in range(3):
        plan = plan_epoch(costs, config, epoch=epoch, workers=workers)
        seconds = measured(plan.load, truth, noise=0.02)
        idle_shares.append(1 - float((seconds.min(axis=1) / seconds.max(axis=1)).mean()))
        workers = refit_workers(plan.load, seconds, plan.workers)
    # Of each step, the part that the worker that ends first waits for the other.
    assert idle_shares[0] > 0.5
    assert idle_shares[-1] < (0.08 if counts == "free" else 0.2)


def test_a_worker_that_changes_is_followed() -> None:
    load = varied_load()
    workers: tuple[Worker, ...] = UNKNOWN
    for speed in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5):
        truth = (Worker(), Worker(speed=speed))
        workers = refit_workers(load, measured(load, truth, noise=0.01), workers)
    assert workers[1].speed == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    ("load", "seconds"),
    [
        ([[0.0, 0.0]] * 4, [[0.0, 0.0]] * 4),
        ([[0.0, 0.0]] * 4, [[1.0, 1.0]] * 4),
        ([[1.0, 1.0]] * 4, [[0.0, 0.0]] * 4),
        ([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 9.0]], [[3.0, 0.0]] * 4),
        ([[1.0] * 2, [2.0] * 2, [3.0] * 2, [4.0] * 2], [[4.0] * 2, [3.0] * 2, [2.0] * 2, [0, 0]]),
        ([[1e12, 1e-12], [2e12, 2e-12], [3e12, 3e-12], [4e12, 4e-12]], [[1.0, 1.0]] * 4),
    ],
)  # fmt: skip
def test_odd_measurements_give_workers_that_can_be_planned_with(
    load: ArrayLike, seconds: ArrayLike
) -> None:
    found = refit_workers(load, seconds, UNKNOWN)
    config = BalanceConfig(batch_size=4, num_workers=2)
    plan = plan_epoch([1.0] * 8, config, workers=found)
    assert np.isfinite(plan.load).all()


@pytest.mark.parametrize(
    ("load", "seconds", "message"),
    [
        ([[1.0, 2.0]] * 4, [[1.0, 2.0]] * 5, r"got \(4, 2\) and \(5, 2\)"),
        ([[1.0]] * 4, [[1.0]] * 4, r"shape \(num_steps, 2 workers\), got \(4, 1\)"),
        ([1.0] * 4, [1.0] * 4, "must have shape"),
        ([[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, "at least 4 steps, got 3"),
        ([[1.0, np.nan]] * 4, [[1.0, 2.0]] * 4, "load must be finite"),
        ([[1.0, 2.0]] * 4, [[1.0, -2.0]] * 4, "seconds must be finite and non-negative"),
        ([[1.0, 2.0]] * 4, [[1.0, np.inf]] * 4, "seconds must be finite"),
    ],
)
def test_bad_measurements_are_refused(load: Any, seconds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refit_workers(load, seconds, UNKNOWN)
