from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, Counts, measure_quality, plan_epoch
from paceline.balance._compose import compose_steps, in_uncorrelated_order, lag_1_autocorrelation

EPOCH = 10**6


def text_costs(seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    size = np.clip(rng.lognormal(np.log(350), 1.1, 32_768), 8, 8192).round()
    return 6144 * size + size**2


def composed(
    costs: NDArray[np.float64], config: BalanceConfig, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a shuffle in steps, and what becomes of it."""
    shuffled = np.random.default_rng([seed, 99]).permutation(len(costs))
    return shuffled.reshape(-1, config.batch_size), compose_steps(costs, shuffled, config, (seed,))


@given(
    num_steps=st.integers(1, 9),
    num_workers=st.integers(2, 4),
    per_worker=st.integers(1, 3),
    window=st.integers(1, 10),
    expensive=st.lists(st.integers(0, 10**6), max_size=12),
    cheap=st.sampled_from([0, 1, 7]),
    seed=st.integers(0, 5),
)
def test_examples_stay_in_their_window_and_each_is_there_once(
    num_steps: int,
    num_workers: int,
    per_worker: int,
    window: int,
    expensive: list[int],
    cheap: int,
    seed: int,
) -> None:
    config = BalanceConfig(
        batch_size=num_workers * per_worker, num_workers=num_workers, window=window
    )
    costs = np.full(num_steps * config.batch_size, cheap, dtype=np.float64)
    expensive = expensive[: len(costs)]
    costs[: len(expensive)] = expensive
    before, after = composed(costs, config, seed)
    assert after.shape == before.shape
    for first in range(0, num_steps, window):
        one, other = before[first : first + window], after[first : first + window]
        assert sorted(one.ravel().tolist()) == sorted(other.ravel().tolist())


def test_a_window_of_one_keeps_the_batches_of_the_shuffle() -> None:
    costs = text_costs(0)[:4096]
    config = BalanceConfig(batch_size=256, num_workers=64, seed=5)
    plan = plan_epoch(costs, config, epoch=3)
    shuffled = np.random.default_rng([5, 3]).permutation(4096).reshape(-1, 256)
    planned = plan.examples.reshape(-1, 256)
    assert np.sort(planned, axis=1).tolist() == np.sort(shuffled, axis=1).tolist()


@pytest.mark.parametrize("cost", [0.0, 1.0, 0.1])
def test_without_expensive_examples_only_the_order_of_batches_may_change(
    cost: float,
) -> None:
    costs = np.full(4096, cost) + np.linspace(0, cost, 4096)
    config = BalanceConfig(batch_size=256, num_workers=8, window=EPOCH)
    before, after = composed(costs, config)
    assert sorted(after.tolist()) == sorted(before.tolist())


def test_expensive_examples_meet_one_per_worker_and_others_keep_their_order() -> None:
    costs = np.ones(64)
    costs[[3, 20, 41, 60]] = [100.0, 400.0, 300.0, 200.0]
    config = BalanceConfig(batch_size=8, num_workers=4, window=EPOCH)
    before, after = composed(costs, config)
    heavy = after[(costs[after] > 1).any(axis=1)]
    assert heavy.shape == (1, 8)
    assert set(heavy[0, :4].tolist()) == {3, 20, 41, 60}
    rest = [row for row in after.tolist() if row != heavy[0].tolist()]
    cheap = [example for example in before.ravel().tolist() if costs[example] == 1]
    assert heavy[0, 4:].tolist() == cheap[:4]
    assert sorted(rest) == sorted(np.reshape(cheap[4:], (-1, 8)).tolist())


def test_of_equally_expensive_examples_the_first_of_the_shuffle_are_taken() -> None:
    costs = np.where(np.arange(64) < 40, 1.0, 0.0)
    config = BalanceConfig(batch_size=4, num_workers=4, window=EPOCH)
    before, after = composed(costs, config)
    expensive = [example for example in before.ravel().tolist() if costs[example]]
    cheap = [example for example in before.ravel().tolist() if not costs[example]]
    assert sorted(after[costs[after].all(axis=1)].ravel().tolist()) == sorted(expensive)
    kept = after[~costs[after].any(axis=1)].tolist()
    assert sorted(kept) == sorted(np.reshape(cheap, (-1, 4)).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("num_workers", "imbalance", "reunion"), [(8, 1.01, 1.5), (64, 1.05, 4.0)])
def test_text_is_balanced_and_mixed_at_once(
    num_workers: int, imbalance: float, reunion: float, seed: int
) -> None:
    costs = text_costs(seed)
    config = BalanceConfig(batch_size=256, num_workers=num_workers, window=EPOCH, seed=seed)
    plans = [plan_epoch(costs, config, epoch=epoch) for epoch in (0, 1)]
    quality = measure_quality(plans[0], costs, config, plans[1])
    assert quality.imbalance <= imbalance
    assert quality.reunion is not None
    assert quality.reunion <= reunion
    assert abs(quality.cost_autocorrelation) < 0.1


def test_batches_as_large_as_the_workers_are_sorted_into_company() -> None:
    costs = np.array([9.0, 1.0, 8.0, 1.0, 1.0, 9.0, 8.0, 1.0])
    config = BalanceConfig(batch_size=2, num_workers=2, window=EPOCH)
    _, after = composed(costs, config)
    assert costs[after].max(axis=1).sum() == 9 + 8 + 1 + 1


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([], 0.0),
        ([3.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.1] * 7, 0.0),
        ([1e200, 1e200, 1e200], 0.0),
        ([1.0, 2.0], -0.5),
        ([1e200, 2e200], -0.5),
        ([1e-200, 2e-200], -0.5),
        ([-1.0, 1.0, -1.0, 1.0], -0.75),
        ([0.0, 0.0, 1.0, 1.0], 0.25),
    ],
)
def test_autocorrelation_is_as_by_hand(series: list[float], expected: float) -> None:
    assert lag_1_autocorrelation(np.array(series)) == pytest.approx(expected)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 40])
def test_an_uncorrelated_order_is_an_order_of_all_steps_of_each_window(num_steps: int) -> None:
    windows = np.arange(2 * num_steps).reshape(2, num_steps, 1)
    costs = windows[:, :, 0].astype(np.float64)
    steps = in_uncorrelated_order(windows, costs, np.random.default_rng(0))
    for first in (0, num_steps):
        here = steps[first : first + num_steps, 0]
        assert sorted(here.tolist()) == list(range(first, first + num_steps))
        if num_steps == 40:
            assert abs(lag_1_autocorrelation(here.astype(np.float64))) < 0.1


def long_tailed(name: str) -> NDArray[np.float64]:
    median, sigma, longest = {"chat": (600, 1.2, 32_768), "steep": (400, 1.4, 16_384)}[name]
    rng = np.random.default_rng(1)
    size = np.clip(rng.lognormal(np.log(median), sigma, 46 * 256), 8, longest).round()
    return 6144 * size + size**2


@pytest.mark.parametrize("counts", ["free", "equal"])
@pytest.mark.parametrize("num_workers", [64, 128])
@pytest.mark.parametrize("name", ["chat", "steep"])
def test_long_tails_come_near_their_bound_and_stay_mixed(
    name: str, num_workers: int, counts: Counts
) -> None:
    costs = long_tailed(name)
    config = BalanceConfig(batch_size=256, num_workers=num_workers, counts=counts, mixing=0)
    plans = [plan_epoch(costs, config, epoch=epoch) for epoch in (0, 1)]
    quality = measure_quality(plans[0], costs, config, plans[1])
    # The most expensive example alone exceeds a worker's share 8 to 48 times.
    assert quality.imbalance <= quality.lower_bound + 0.1
    assert quality.reunion is not None
    assert quality.reunion <= 4


def best_makespan(costs: NDArray[np.float64], batch_size: int) -> float:
    """Try all ways to make steps of two workers, of any counts."""
    if not len(costs):
        return 0.0
    best = np.inf
    for others in combinations(range(1, len(costs)), batch_size - 1):
        step = costs[[0, *others]]
        masks = np.arange(1, 2 ** (batch_size - 1))[:, None] >> np.arange(batch_size) & 1
        ends = float(np.maximum(masks @ step, (1 - masks) @ step).min())
        best = min(best, ends + best_makespan(np.delete(costs, [0, *others]), batch_size))
    return best


def test_small_windows_are_nearly_as_even_as_any() -> None:
    config = BalanceConfig(batch_size=5, num_workers=2, counts="free", window=2, shuffle=False)
    ratios = []
    for seed in range(20):
        costs = np.random.default_rng(seed).lognormal(0, 1.5, 10)
        reached = plan_epoch(costs, config).makespan()
        ratios.append(reached / best_makespan(costs, 5))
    assert min(ratios) >= 1 - 1e-9
    assert np.mean(ratios) <= 1.1
