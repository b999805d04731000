import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, Counts
from paceline.balance._padded_window import MAX_WINDOW, compose_padded_steps
from paceline.balance.split import Pace
from paceline.balance.split._padded import split_padded_steps

SEED = (0, 0, 1)


def text_costs(seed: int, num_examples: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    size = np.clip(rng.lognormal(np.log(350), 1.1, num_examples), 8, 8192).round()
    return 6144 * size + size**2


def same_pace(num_workers: int) -> Pace:
    return Pace(np.ones(num_workers), np.zeros(num_workers))


def compose(costs: NDArray[np.float64], config: BalanceConfig, pace: Pace) -> NDArray[np.int64]:
    return compose_padded_steps(costs, np.arange(len(costs)), config, pace, SEED)


def makespan(costs: NDArray[np.float64], counts: Counts, pace: Pace) -> float:
    """Return the sum over steps of when the latest worker ends, computed without any help."""
    total = 0.0
    for cost, owner in zip(costs, split_padded_steps(costs, counts, pace), strict=True):
        parts = [cost[owner == worker] for worker in range(len(pace[0]))]
        load = np.array([len(part) * part.max(initial=0.0) for part in parts])
        total += float((pace[1] + load * pace[0]).max())
    return total


@given(
    num_steps=st.integers(1, 40),
    batch_size=st.integers(2, 9),
    num_workers=st.integers(2, 4),
    window=st.integers(2, 40),
    counts=st.sampled_from(["equal", "free"]),
    top=st.sampled_from([0, 1, 50]),
    seed=st.integers(0, 9),
)
def test_examples_stay_in_their_window_and_each_is_there_once(
    num_steps: int,
    batch_size: int,
    num_workers: int,
    window: int,
    counts: Counts,
    top: int,
    seed: int,
) -> None:
    batch_size = batch_size * num_workers if counts == "equal" else max(batch_size, num_workers)
    config = BalanceConfig(
        batch_size=batch_size, num_workers=num_workers, counts=counts, padded=True, window=window
    )
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, top + 1, num_steps * batch_size).astype(np.float64)
    steps = compose(costs, config, same_pace(num_workers))
    assert steps.shape == (num_steps, batch_size)
    # The search is too slow for more than 16 steps, so wider windows are cut.
    window = min(window, MAX_WINDOW)
    for first in range(0, num_steps, window):
        examples = steps[first : first + window].ravel()
        begin = first * batch_size
        assert sorted(examples.tolist()) == list(range(begin, begin + len(examples)))


def test_text_over_16_steps_is_padded_by_6_percent_at_most() -> None:
    config = BalanceConfig(batch_size=256, num_workers=8, counts="free", padded=True, window=16)
    shares = []
    for seed in range(4):
        costs = text_costs(seed, 32_768)
        steps = compose(costs, config, same_pace(8))
        shares.append(makespan(costs[steps], "free", same_pace(8)) * 8 / costs.sum())
    # Between one dataset and the next this varies by a tenth of a percent.
    assert np.mean(shares) <= 1.06
    assert max(shares) <= 1.065


@pytest.mark.parametrize(("batch_size", "num_workers"), [(2, 2), (6, 2), (16, 8), (64, 8)])
@pytest.mark.parametrize("num_steps", [2, 5, 16])
@pytest.mark.parametrize("counts", ["equal", "free"])
def test_a_window_is_never_worse_than_the_plain_shuffle(
    batch_size: int, num_workers: int, num_steps: int, counts: Counts
) -> None:
    config = BalanceConfig(
        batch_size=batch_size, num_workers=num_workers, counts=counts, padded=True, window=16
    )
    pace = same_pace(num_workers)
    for seed in range(5):
        costs = text_costs(seed, num_steps * batch_size)
        plain = makespan(costs.reshape(-1, batch_size), counts, pace)
        assert makespan(costs[compose(costs, config, pace)], counts, pace) <= plain * (1 + 1e-9)


@pytest.mark.parametrize("batch_size", [4, 12])
def test_with_equal_counts_steps_are_slices_of_the_sorted_window(batch_size: int) -> None:
    costs = text_costs(3, 8 * batch_size)
    config = BalanceConfig(batch_size=batch_size, num_workers=4, padded=True, window=8)
    steps = compose(costs, config, same_pace(4))
    ordered = np.argsort(-costs, kind="stable").reshape(8, batch_size)
    assert sorted(steps.tolist()) == sorted(ordered.tolist())


@pytest.mark.parametrize("cost", [0.0, 1.0, 5e-324, 1e300])
@pytest.mark.parametrize("overhead", [0.0, 3.0])
def test_equal_costs_and_overheads_end_the_search(cost: float, overhead: float) -> None:
    config = BalanceConfig(batch_size=12, num_workers=3, counts="free", padded=True, window=4)
    pace = Pace(np.ones(3), np.full(3, overhead))
    steps = compose(np.full(96, cost), config, pace)
    assert sorted(steps.ravel().tolist()) == list(range(96))


def test_the_order_of_the_workers_does_not_matter() -> None:
    costs = text_costs(4, 4 * 64)
    config = BalanceConfig(batch_size=64, num_workers=4, counts="free", padded=True, window=4)
    rate, start = np.array([3.0, 1.0, 1.0, 0.5]), np.array([0.0, 1e5, 0.0, 0.0])
    found = []
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        pace = Pace(rate[order], start[order])
        found.append(makespan(costs[compose(costs, config, pace)], "free", pace))
    assert found[0] == found[1]


def test_the_most_expensive_examples_go_to_the_fastest_worker() -> None:
    costs = np.array([[8.0, 1.0, 1.0, 1.0, 1.0]])
    owner = split_padded_steps(costs, "free", Pace(np.array([2.0, 1.0]), np.zeros(2)))
    assert owner.tolist() == [[1, 0, 0, 0, 0]]
    owner = split_padded_steps(costs, "free", Pace(np.ones(2), np.array([5.0, 0.0])))
    assert owner.tolist() == [[1, 0, 0, 0, 0]]
