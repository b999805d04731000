from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import Counts, Partition, partition
from paceline.balance.split._pace import pace_of
from paceline.balance.split._sorting import descending_order
from paceline.balance.split._starts import Rules
from paceline.balance.split._steps import lower_bound
from paceline.cost import Worker

BOTH: tuple[Counts, ...] = ("equal", "free")
EQUAL_WORKERS = st.integers(1, 3).map(lambda num_workers: (Worker(),) * num_workers)
WORKERS = st.lists(
    st.builds(
        Worker,
        speed=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        overhead_s=st.integers(0, 9).map(float),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
COSTS = st.lists(st.one_of(st.integers(0, 20).map(float), st.floats(0, 1e6)), max_size=8)


def fitting(costs: list[float], num_workers: int, counts: Counts) -> list[float]:
    """Cut or fill up to a batch that the workers can split."""
    filled = (costs + [1.0] * num_workers)[: max(len(costs), num_workers)]
    return filled[: len(filled) // num_workers * num_workers] if counts == "equal" else filled


def makespan(split: Partition, workers: tuple[Worker, ...]) -> float:
    ends = [
        worker.overhead_s + load / worker.speed
        for worker, load in zip(workers, split.load.tolist(), strict=True)
    ]
    return float(max(ends))


def least_makespan(costs: list[float], counts: Counts, workers: tuple[Worker, ...]) -> float:
    """Try every assignment that leaves nobody empty."""
    num_workers = len(workers)
    owners = np.indices((num_workers,) * len(costs)).reshape(len(costs), -1).T
    held = np.stack([(owners == worker).sum(axis=1) for worker in range(num_workers)], axis=1)
    is_allowed = held == len(costs) // num_workers if counts == "equal" else held > 0
    owners = owners[is_allowed.all(axis=1)]
    ends = [
        worker.overhead_s + (owners == rank) @ np.array(costs) / worker.speed
        for rank, worker in enumerate(workers)
    ]
    return float(np.max(ends, axis=0).min())


def bound_of(costs: list[float], counts: Counts, workers: tuple[Worker, ...]) -> float:
    cost = np.array(costs)
    capacity = len(costs) // len(workers) if counts == "equal" else len(costs)
    order = descending_order(cost[None])[0]
    rules = Rules(capacity, counts == "free", *pace_of(workers, len(workers)), 0.0)
    return lower_bound(cost, order, rules)


def text_costs(rng: np.random.Generator, num_examples: int) -> NDArray[np.float64]:
    size = np.clip(rng.lognormal(np.log(350), 1.1, num_examples), 8, 8192).round()
    return 6144 * size + size**2


@given(costs=COSTS, counts=st.sampled_from(BOTH), workers=WORKERS)
def test_the_bound_is_below_the_best_split_and_that_is_below_ours(
    costs: list[float], counts: Counts, workers: tuple[Worker, ...]
) -> None:
    costs = fitting(costs, len(workers), counts)
    best = least_makespan(costs, counts, workers)
    split = partition(costs, len(workers), counts=counts, workers=workers)
    assert bound_of(costs, counts, workers) <= best * (1 + 1e-9)
    assert makespan(split, workers) >= best * (1 - 1e-9)


@given(costs=COSTS, workers=EQUAL_WORKERS)
def test_free_splits_over_equal_workers_keep_grahams_bound(
    costs: list[float], workers: tuple[Worker, ...]
) -> None:
    costs = fitting(costs, len(workers), "free")
    best = least_makespan(costs, "free", workers)
    found = makespan(partition(costs, len(workers), counts="free"), workers)
    assert found <= (4 / 3 - 1 / (3 * len(workers))) * best * (1 + 1e-9)


@pytest.mark.parametrize("counts", BOTH)
@pytest.mark.parametrize(("speeds", "most"), [((1.0, 1.0, 1.0), 1.002), ((2.0, 1.0, 0.5), 1.01)])
def test_small_batches_are_split_almost_as_well_as_by_trying_everything(
    counts: Counts, speeds: tuple[float, ...], most: float
) -> None:
    workers = tuple(Worker(speed=speed) for speed in speeds)
    rng = np.random.default_rng(0)
    best = ours = 0.0
    for _ in range(40):
        costs = rng.lognormal(0.0, 1.0, 6).tolist()
        best += least_makespan(costs, counts, workers)
        ours += makespan(partition(costs, 3, counts=counts, workers=workers), workers)
    assert ours <= most * best


@pytest.mark.parametrize("counts", BOTH)
@pytest.mark.parametrize(
    ("sizes", "num_workers"), [("text", 8), ("text", 64), ("narrow", 8), ("narrow", 64)]
)
def test_a_batch_of_256_is_split_to_half_a_percent_of_the_bound(
    counts: Counts, sizes: str, num_workers: int
) -> None:
    rng = np.random.default_rng(1)
    workers = (Worker(),) * num_workers
    bound = ours = 0.0
    for _ in range(50):
        costs = text_costs(rng, 256) if sizes == "text" else rng.normal(100.0, 12.0, 256)
        bound += bound_of(costs.tolist(), counts, workers)
        ours += makespan(partition(costs, num_workers, counts=counts), workers)
    assert bound <= ours <= 1.005 * bound


@pytest.mark.parametrize("counts", BOTH)
def test_a_slow_worker_gets_less_until_it_finishes_with_the_others(counts: Counts) -> None:
    workers = (Worker(speed=1 / 3), Worker(overhead_s=1e6), *(Worker(),) * 6)
    costs = text_costs(np.random.default_rng(2), 256)
    split = partition(costs, 8, counts=counts, workers=workers)
    assert makespan(split, workers) <= 1.005 * bound_of(costs.tolist(), counts, workers)


@given(
    costs=st.lists(st.floats(0, 1e3), min_size=1, max_size=40),
    num_workers=st.integers(1, 9),
    counts=st.sampled_from(BOTH),
)
def test_every_example_has_one_owner_and_nobody_is_empty(
    costs: list[float], num_workers: int, counts: Counts
) -> None:
    costs = fitting(costs, num_workers, counts)
    split = partition(costs, num_workers, counts=counts)
    held = np.bincount(split.owner, minlength=num_workers)
    assert split.owner.shape == (len(costs),)
    assert split.load.shape == held.shape == (num_workers,)
    assert held.min() >= 1
    if counts == "equal":
        assert set(held.tolist()) == {len(costs) // num_workers}
    parts = [split.examples_of(worker) for worker in range(num_workers)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(costs)))
    assert [sum(costs[i] for i in part) for part in parts] == pytest.approx(split.load.tolist())


@pytest.mark.parametrize("counts", BOTH)
@pytest.mark.parametrize("num_examples", [6, 12, 24])
@pytest.mark.parametrize("cost", [0.0, 1.0, 0.1, 1e-320, 1e300])
def test_equal_costs_are_split_evenly_unless_they_are_nothing(
    counts: Counts, num_examples: int, cost: float
) -> None:
    split = partition([cost] * num_examples, 6, counts=counts)
    held = np.bincount(split.owner, minlength=6)
    assert held.min() >= 1
    if cost or counts == "equal":
        assert held.tolist() == [num_examples // 6] * 6


@pytest.mark.parametrize(
    ("costs", "workers"),
    [
        ([0.0] * 5, (Worker(),) * 3),
        ([1e9, 0.0, 0.0], (Worker(),) * 3),
        ([1.0] * 5, (Worker(), Worker(overhead_s=1e6))),
        ([1.0] * 5, (Worker(overhead_s=1e6), Worker(speed=1e-6), Worker())),
        ([3.0, 2.0, 1.0], (Worker(speed=1e6), Worker(), Worker())),
    ],
)
def test_free_counts_leave_nobody_empty_even_where_that_ends_later(
    costs: list[float], workers: tuple[Worker, ...]
) -> None:
    owner = partition(costs, len(workers), counts="free", workers=workers).owner
    assert set(owner.tolist()) == set(range(len(workers)))


def test_fewer_examples_than_workers_go_to_workers_of_their_own() -> None:
    assert partition([0.0, 0.0], 3, counts="free").owner.tolist() == [0, 1]
    assert partition([1.0, 2.0], 3, counts="free").owner.tolist() == [1, 0]
    assert partition([], 3, counts="free").load.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("costs", "counts", "owner"),
    [
        ([5.0, 5.0, 5.0, 5.0], "equal", [0, 1, 0, 1]),
        ([5.0, 5.0, 5.0, 5.0], "free", [0, 1, 0, 1]),
        ([3.0, 1.0, 2.0, 2.0], "equal", [0, 0, 1, 1]),
        ([8.0, 1.0, 1.0, 1.0], "free", [0, 1, 1, 1]),
        ([0.0, 0.0, 0.0], "free", [0, 0, 1]),
        ([7.0, 0.0], "equal", [0, 1]),
    ],
)
def test_ties_go_to_the_lower_example_and_worker(
    costs: list[float], counts: Counts, owner: list[int]
) -> None:
    assert partition(costs, 2, counts=counts).owner.tolist() == owner


@pytest.mark.parametrize("counts", BOTH)
def test_the_same_batch_is_split_the_same_again(counts: Counts) -> None:
    costs = text_costs(np.random.default_rng(3), 256)
    before = costs.copy()
    one, other = partition(costs, 8, counts=counts), partition(costs.tolist(), 8, counts=counts)
    assert one.owner.tolist() == other.owner.tolist()
    assert costs.tolist() == before.tolist()


@pytest.mark.parametrize("counts", BOTH)
def test_workers_in_another_order_get_their_loads_in_that_order(counts: Counts) -> None:
    speeds = np.array([2.0, 1.0, 0.5, 1.5])
    costs = text_costs(np.random.default_rng(4), 256)
    order = np.array([3, 1, 0, 2])
    loads = [
        partition(costs, 4, counts=counts, workers=tuple(Worker(speed=s) for s in listed)).load
        for listed in (speeds.tolist(), speeds[order].tolist())
    ]
    np.testing.assert_allclose(loads[0][order], loads[1], rtol=0.02)


@pytest.mark.parametrize("counts", BOTH)
@pytest.mark.parametrize("num_workers", [1, 500])
def test_one_worker_and_very_many_are_served(counts: Counts, num_workers: int) -> None:
    costs = np.arange(1000.0)
    split = partition(costs, num_workers, counts=counts)
    assert split.load.sum() == costs.sum()
    assert np.bincount(split.owner, minlength=num_workers).min() >= 1


@pytest.mark.parametrize(
    ("costs", "num_workers", "options", "message"),
    [
        ([1.0, -1.0], 2, {}, r"costs\[1\] is -1.0"),
        ([np.nan, 1.0], 2, {}, r"costs\[0\] is nan"),
        ([1.0, np.inf], 2, {}, r"costs\[1\] is inf"),
        ([1e308, 1e308], 2, {}, "too large to add up"),
        ([[1.0, 2.0]], 2, {}, "one-dimensional"),
        ([1.0], 0, {}, "num_workers must be at least 1, got 0"),
        ([1.0], -1, {}, "num_workers must be at least 1, got -1"),
        ([1.0] * 5, 2, {}, r"num_workers \(2\) divides, got 5; use 6 or 4"),
        ([1.0], 2, {}, "got 1; use 2, or counts='free'"),
        ([1.0] * 2, 2, {"counts": "fair"}, "counts must be 'equal' or 'free', got 'fair'"),
        ([1.0] * 2, 2, {"workers": (Worker(),)}, "workers must hold 2 entries, got 1"),
    ],
)
def test_bad_input_is_refused(
    costs: Any, num_workers: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        partition(costs, num_workers, **options)
