import json
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import (
    BalanceConfig,
    Cursor,
    EpochPlanner,
    delivery_of,
    micro_batches_of,
    plan_epoch,
)
from paceline.balance.split._cheapest_cuts import cheapest_cuts
from paceline.balance.split._padded_micro import (
    MicroBatchCosts,
    plan_padded_micro_batches,
)
from paceline.cost import Worker

NO_LIMIT = (np.inf, np.inf, np.inf, np.inf)
costs_of_a_batch = st.lists(st.integers(0, 9), min_size=1, max_size=9)


def costs_of(
    overhead: float = 0.0,
    rate: tuple[float, ...] = (1.0, 1.0),
    most: tuple[float, ...] = NO_LIMIT,
) -> MicroBatchCosts:
    return MicroBatchCosts(overhead, np.array(rate), np.zeros(len(rate)), np.array(most))


def planned(
    batch: list[float], costs: MicroBatchCosts
) -> tuple[list[list[list[float]]], NDArray[np.int64]]:
    """Return the costs of each micro-batch of each worker."""
    amounts = np.broadcast_to(np.array(batch, dtype=np.float64), (3, 1, len(batch)))
    worker, micro, counts = plan_padded_micro_batches(amounts, costs)
    parts = [
        [[c for c, w, m in zip(batch, worker[0], micro[0], strict=True) if (w, m) == (who, number)]
         for number in range(counts[0, who])]
        for who in range(len(costs.rate))
    ]  # fmt: skip
    return parts, counts


def load_of(parts: list[list[float]], overhead: float) -> float:
    return sum(len(part) * max(part) + overhead for part in parts)


def cheapest_by_force(cost: list[float], overhead: float) -> float:
    """Try every set of cuts of the sorted batch."""
    found = []
    for cuts in product([False, True], repeat=len(cost) - 1):
        bounds = [0, *(i + 1 for i, is_cut in enumerate(cuts) if is_cut), len(cost)]
        found.append(sum((b - a) * cost[a] + overhead for a, b in pairwise(bounds)))
    return min(found)


@given(costs_of_a_batch, st.sampled_from([0.0, 0.5, 1.0, 4.0, 100.0]))
def test_cuts_cost_least_of_all(batch: list[int], overhead: float) -> None:
    cost = np.sort(np.array(batch, dtype=np.float64))[::-1].copy()
    ends = np.empty(len(cost), dtype=np.int64)
    number = cheapest_cuts(cost, overhead, ends)
    begins = [0, *ends[: number - 1]]
    total = sum(
        (end - begin) * cost[begin] + overhead
        for begin, end in zip(begins, ends[:number], strict=True)
    )
    assert total == pytest.approx(cheapest_by_force(cost.tolist(), overhead))
    assert ends[number - 1] == len(cost)


@given(
    st.lists(st.integers(0, 50), min_size=3, max_size=40),
    st.sampled_from([0.0, 1.0, 30.0]),
    st.sampled_from([(1.0,), (1.0, 1.0), (1.0, 2.0, 0.5)]),
    st.sampled_from([np.inf, 5.0, 2.0]),
)
def test_every_example_is_in_one_micro_batch_of_similar_ones_within_the_limits(
    batch: list[int], overhead: float, rate: tuple[float, ...], max_examples: float
) -> None:
    most = (np.inf, np.inf, np.inf, max_examples)
    parts, counts = planned([float(c) for c in batch], costs_of(overhead, rate, most))
    assert counts.min() >= 1
    flat = sorted(c for worker in parts for part in worker for c in part)
    assert flat == sorted(map(float, batch))
    assert all(1 <= len(part) <= max_examples for worker in parts for part in worker)
    for worker in parts:
        loads = [load_of([part], overhead) for part in worker]
        assert loads == sorted(loads)


@given(st.lists(st.integers(1, 50), min_size=4, max_size=40), st.sampled_from([0.0, 1.0, 30.0]))
def test_one_worker_pays_what_the_cheapest_cuts_cost(batch: list[int], overhead: float) -> None:
    parts, _ = planned([float(c) for c in batch], costs_of(overhead, (1.0,)))
    cost = np.sort(np.array(batch, dtype=np.float64))[::-1].copy()
    ends = np.empty(len(cost), dtype=np.int64)
    number = cheapest_cuts(cost, overhead, ends)
    sizes = np.diff(ends[:number], prepend=0)
    cheapest = float((sizes * cost[ends[:number] - sizes]).sum()) + number * overhead
    assert load_of(parts[0], overhead) == pytest.approx(cheapest)


@pytest.mark.parametrize(
    ("batch", "overhead", "expected"),
    [
        # Nothing to pay for a cut: all are cut apart, and balanced.
        ([4.0, 3.0, 2.0, 1.0], 0.0, [[[1.0], [4.0]], [[2.0], [3.0]]]),
        # A cut costs more than it saves: one each, as one of them would leave a worker idle.
        ([4.0, 4.0, 4.0, 4.0], 50.0, [[[4.0, 4.0]], [[4.0, 4.0]]]),
        # The one long example is alone; the short ones are together.
        ([9.0, 1.0, 1.0, 1.0], 0.5, [[[9.0]], [[1.0, 1.0, 1.0]]]),
    ],
)
def test_small_batches_are_cut_as_by_hand(
    batch: list[float], overhead: float, expected: list[list[list[float]]]
) -> None:
    assert planned(batch, costs_of(overhead))[0] == expected


def test_a_slow_worker_gets_less() -> None:
    parts, _ = planned([1.0] * 30, costs_of(0.1, (1.0, 2.0)))
    counts = [sum(len(part) for part in worker) for worker in parts]
    assert counts == [20, 10]


@pytest.mark.parametrize(("num_workers", "batch_size"), [(2, 32), (8, 256)])
def test_the_last_worker_ends_near_the_bound(num_workers: int, batch_size: int) -> None:
    sizes = np.random.default_rng(0).lognormal(np.log(350), 1.1, (50, batch_size)).clip(8, 8192)
    cost = 6144 * sizes + sizes**2
    overhead = float(cost.mean()) / 4
    rate = np.ones(num_workers)
    costs = MicroBatchCosts(overhead, rate, np.zeros(num_workers), np.array(NO_LIMIT))
    worker, micro, _ = plan_padded_micro_batches(np.stack([cost, sizes, sizes]), costs)
    ends = np.empty(batch_size, dtype=np.int64)
    over = []
    for step in range(len(cost)):
        place = worker[step] * batch_size + micro[step]
        longest = np.zeros(num_workers * batch_size)
        np.maximum.at(longest, place, cost[step])
        count = np.bincount(place, minlength=len(longest))
        load = (longest * count + overhead * (count > 0)).reshape(num_workers, -1).sum(axis=1)
        descending = -np.sort(-cost[step])
        number = cheapest_cuts(descending, overhead, ends)
        size = np.diff(ends[:number], prepend=0)
        total = (size * descending[ends[:number] - size]).sum() + number * overhead
        over.append(load.max() / max(total / num_workers, descending[0] + overhead))
    assert np.mean(over) <= 1.03


def test_every_worker_may_have_its_own_number_of_micro_batches() -> None:
    config = BalanceConfig(
        batch_size=5,
        num_workers=2,
        counts="free",
        padded=True,
        num_microbatches="auto",
        microbatch_cost=0.5,
        shuffle=False,
    )
    plan = plan_epoch([9.0, 4.0, 1.0, 1.0, 4.0], config)
    assert plan.num_microbatches.tolist() == [[1, 2]]
    assert plan.load.tolist() == [[9.5, 11.0]]
    delivered = list(micro_batches_of(plan, 1))
    assert [batch.examples.tolist() for batch in delivered] == [[2, 3], [1, 4]]
    assert [batch.is_step_end for batch in delivered] == [False, True]
    assert [batch.loss_weight for batch in delivered] == [0.8, 0.8]
    found = delivery_of(plan)
    assert found.worker.tolist() == [0, 1, 1, 1, 1]
    assert found.loss_weight.tolist() == [0.4, 0.8, 0.8, 0.8, 0.8]


def test_equal_counts_stay_equal_and_each_share_is_cut() -> None:
    config = BalanceConfig(
        batch_size=8, num_workers=2, padded=True, num_microbatches="auto", microbatch_cost=1.0
    )
    costs = [100.0, 90.0, 5.0, 4.0, 3.0, 3.0, 2.0, 1.0]
    plan = plan_epoch(costs, config)
    assert [len(plan.step_examples(0, worker)) for worker in (0, 1)] == [4, 4]
    # 100 + 90 + 2 x 5 in three cuts; 2 x 3 + 2 x 2 in two.
    assert sorted(plan.load[0].tolist()) == [12.0, 203.0]


def test_a_plan_without_padding_has_as_few_as_the_limits_allow() -> None:
    config = BalanceConfig(batch_size=8, num_workers=2, num_microbatches="auto")
    assert (plan_epoch(np.arange(16.0), config).num_microbatches == 1).all()


def test_a_run_with_planned_micro_batches_goes_on_where_it_stopped() -> None:
    config = BalanceConfig(
        batch_size=8, num_workers=2, counts="free", padded=True, num_microbatches="auto"
    )
    sizes = np.random.default_rng(0).integers(1, 100, 40)
    planner = EpochPlanner(sizes, config)
    start = Cursor(workers=(Worker(), Worker()))
    for num_steps in range(5):
        state = json.loads(json.dumps(planner.state_dict(replace(start, num_steps=num_steps))))
        again = EpochPlanner(sizes, config)
        cursor = again.load_state_dict(state)
        left = [again.plan(cursor).step_examples(step, 0) for step in range(num_steps, 5)]
        straight = [planner.plan(start).step_examples(step, 0) for step in range(num_steps, 5)]
        assert [ids.tolist() for ids in left] == [ids.tolist() for ids in straight]
