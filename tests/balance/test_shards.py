from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, EpochPlan, Limits, Shards, plan_epoch, shard_bound
from paceline.balance._shards import spread_shards
from paceline.cost import Worker


@st.composite
def sharded(draw: st.DrawFn) -> tuple[list[float], Shards, int]:
    num_workers = draw(st.integers(1, 4))
    ranks = st.lists(st.integers(0, num_workers - 1), min_size=1, unique=True).map(tuple)
    readers = draw(st.lists(ranks, min_size=1, max_size=4).map(tuple))
    costs = draw(st.lists(st.integers(0, 20).map(float), min_size=1, max_size=12))
    shard = st.lists(st.integers(0, len(readers) - 1), min_size=len(costs), max_size=len(costs))
    return costs, Shards(np.array(draw(shard)), readers), num_workers


def brute_force_bound(costs: list[float], shards: Shards, num_workers: int) -> float:
    """Return the largest share, over all sets of workers, of what only they can read."""
    best = 1.0
    for size in range(1, num_workers + 1):
        for workers in combinations(range(num_workers), size):
            captive = sum(
                cost
                for cost, shard in zip(costs, shards.shard.tolist(), strict=True)
                if set(shards.readers[shard]) <= set(workers)
            )
            best = max(best, captive / (sum(costs) or 1.0) * num_workers / size)
    return best


def wrong_reads(plan: EpochPlan, shards: Shards) -> int:
    return sum(
        worker not in shards.readers[shards.shard[example]]
        for step in range(plan.num_steps)
        for worker in range(plan.num_workers)
        for example in plan.step_examples(step, worker)
    )


def config_of(batch_size: int, num_workers: int, **changes: Any) -> BalanceConfig:
    return BalanceConfig(
        batch_size=batch_size, num_workers=num_workers, counts="free", tail="drop", **changes
    )


def text_costs(num_examples: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    size = np.clip(rng.lognormal(np.log(350), 1.1, num_examples), 8, 2048).round()
    return 6144 * size + size**2


@given(sharded())
def test_the_bound_is_that_of_the_tightest_set_of_workers(
    problem: tuple[list[float], Shards, int],
) -> None:
    costs, shards, num_workers = problem
    bound = shard_bound(costs, shards, num_workers)
    assert bound.imbalance == pytest.approx(brute_force_bound(*problem))
    assert bound.imbalance == pytest.approx(bound.share * num_workers / len(bound.workers))
    assert set(bound.workers) <= set(range(num_workers))


@given(sharded(), st.integers(1, 2), st.integers(0, 3), st.booleans())
def test_plans_read_only_what_their_workers_can_and_keep_the_bound(
    problem: tuple[list[float], Shards, int], num_steps: int, epoch: int, longest_first: bool
) -> None:
    costs, shards, num_workers = problem
    batch_size = len(costs) // num_steps
    assume(batch_size >= num_workers)
    config = config_of(batch_size, num_workers, longest_first=longest_first)
    try:
        plan = plan_epoch(costs, config, epoch=epoch, shards=shards)
    except ValueError as error:
        assert "can read nothing that is left in step" in str(error)  # noqa: PT017
        return
    assert wrong_reads(plan, shards) == 0
    num_planned = len(costs) // batch_size * batch_size
    assert len(set(plan.examples.tolist())) == len(plan.examples) == num_planned
    assert (np.diff(plan.micro_offsets) >= 1).all()
    if num_planned == len(costs) and max(costs) > 0:
        imbalance = plan.load.max(axis=1).sum() / (sum(costs) / num_workers)
        assert imbalance >= shard_bound(costs, shards, num_workers).imbalance * (1 - 1e-9)


@pytest.mark.parametrize(
    ("readers", "shares", "most"),
    [
        (((0, 1), (2, 3)), (0.5, 0.5), 1.03),
        (((0, 1), (2, 3)), (0.7, 0.3), 1.03),
        (((0, 1, 2), (1, 2, 3), (0, 3)), (0.2, 0.5, 0.3), 1.01),
        (((0,), (1,), (2,), (3,), (0, 1, 2, 3)), (0.1, 0.1, 0.1, 0.2, 0.5), 1.01),
    ],
)
def test_large_batches_come_close_to_the_bound(
    readers: tuple[tuple[int, ...], ...], shares: tuple[float, ...], most: float
) -> None:
    costs = text_costs(8192)
    shard = np.random.default_rng(1).choice(len(shares), size=8192, p=shares)
    shards = Shards(shard, readers)
    plan = plan_epoch(costs, config_of(512, 4), shards=shards)
    assert wrong_reads(plan, shards) == 0
    imbalance = plan.load.max(axis=1).sum() / (costs.sum() / 4)
    bound = shard_bound(costs, shards, 4).imbalance
    assert bound <= imbalance <= most * bound


def test_a_slow_worker_gets_less_of_what_others_can_read_too() -> None:
    costs = text_costs(4096)
    shards = Shards(np.arange(4096) % 2, ((0, 1), (0, 1, 2)))
    workers = (Worker(), Worker(speed=1 / 3), Worker(overhead_s=float(costs.sum()) / 100))
    plan = plan_epoch(costs, config_of(512, 3), workers=workers, shards=shards)
    ends = plan.finish_times()
    assert ends.max(axis=1).sum() <= 1.02 * ends.mean(axis=1).sum()


def test_uneven_shards_run_out_together() -> None:
    shards = Shards(np.repeat([0, 1, 2], [80, 15, 5]), ((0,), (1,), (2,)))
    order = spread_shards(shards, np.random.default_rng(0).permutation(100))
    assert sorted(order.tolist()) == list(range(100))
    held = [np.bincount(shards.shard[step], minlength=3) for step in order.reshape(5, 20)]
    assert np.abs(np.array(held) - [16, 3, 1]).max() <= 1


def test_within_a_shard_the_order_of_the_shuffle_stays() -> None:
    shards = Shards(np.arange(40) % 3, ((0,), (0,), (0,)))
    order = np.random.default_rng(0).permutation(40)
    spread = spread_shards(shards, order)
    for shard in range(3):
        assert spread[spread % 3 == shard].tolist() == order[order % 3 == shard].tolist()


def test_micro_batches_are_cut_from_what_workers_can_read() -> None:
    costs = text_costs(1024)
    shards = Shards(np.arange(1024) % 2, ((0, 1), (2, 3)))
    config = config_of(128, 4, num_microbatches=3, limits=Limits(max_examples=20))
    plan = plan_epoch(costs, config, shards=shards)
    assert wrong_reads(plan, shards) == 0
    assert plan.num_microbatches.min() >= 3


def test_micro_batches_that_a_worker_cannot_fill_are_refused() -> None:
    shards = Shards(np.array([0, 1, 1, 1, 1, 1]), ((0,), (1,)))
    config = config_of(6, 2, num_microbatches=2)
    with pytest.raises(ValueError, match="worker 0 can read too few examples of step 0"):
        plan_epoch([1.0] * 6, config, shards=shards)


@pytest.mark.parametrize(
    ("shard", "readers", "text"),
    [
        ([0, 0, 1, 1], ((0,), (1,)), "the shards allow perfect balance"),
        (
            [0, 0, 0, 1],
            ((0,), (1,)),
            "the shards allow at best 1.500 x the mean load: 75.0% of the cost can be read by "
            "workers 0 alone; give more workers access to it, or move examples to other shards",
        ),
    ],
)
def test_a_bound_says_why_in_words(
    shard: list[int], readers: tuple[tuple[int, ...], ...], text: str
) -> None:
    bound = shard_bound([1.0] * 4, Shards(np.array(shard), readers), 2)
    assert str(bound) == text


@pytest.mark.parametrize("costs", [[0.0, 0.0], []])
def test_nothing_to_share_is_perfectly_even(costs: list[float]) -> None:
    shards = Shards(np.zeros(len(costs), dtype=np.int64), ((0,),))
    assert shard_bound(costs, shards, 2).imbalance == 1.0


def test_many_sets_of_readers_are_searched_in_part() -> None:
    readers = tuple((worker,) for worker in range(16))
    shard = np.repeat(np.arange(16), [5] + [1] * 15)
    bound = shard_bound([1.0] * 20, Shards(shard, readers), 16)
    assert bound.workers == (0,)
    assert bound.imbalance == pytest.approx(5 / 20 * 16)


@pytest.mark.parametrize(
    ("shard", "readers", "message"),
    [
        ([0, 2], ((0,), (1,)), r"shard must lie in \[0, 2\), but example 1 has 2"),
        ([-1, 0], ((0,),), "example 0 has -1"),
        ([0, 0], ((0,), ()), "shard 1 has no readers; its examples would be lost"),
    ],
)
def test_shards_without_readers_or_that_do_not_exist_are_refused(
    shard: list[int], readers: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Shards(np.array(shard), readers)


@pytest.mark.parametrize("readers", [((0, 2), (1,)), ((-1,), (1,))])
def test_readers_that_are_no_workers_are_refused(readers: tuple[tuple[int, ...], ...]) -> None:
    shards = Shards(np.array([0, 1, 0, 1]), readers)
    with pytest.raises(ValueError, match=r"readers of shard 0 must lie in \[0, 2\)"):
        plan_epoch([1.0] * 4, config_of(4, 2), shards=shards)
    with pytest.raises(ValueError, match=r"readers of shard 0 must lie in \[0, 2\)"):
        shard_bound([1.0] * 4, shards, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": "equal"}, "shards need counts='free', got 'equal'"),
        ({"window": 4}, "shards need window=1, got 4"),
        ({"padded": True}, "shards need padded=False, got True"),
        ({"tail": "wrap"}, "shards need tail='drop', got 'wrap'"),
    ],
)
def test_configs_that_shards_cannot_follow_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    options = {"batch_size": 4, "num_workers": 2, "counts": "free", "tail": "drop", **changes}
    shards = Shards(np.array([0, 1, 0, 1]), ((0,), (1,)))
    with pytest.raises(ValueError, match=message):
        plan_epoch([1.0] * 4, BalanceConfig(**options), shards=shards)


def test_shards_of_another_dataset_are_refused() -> None:
    shards = Shards(np.array([0, 1]), ((0,), (1,)))
    with pytest.raises(ValueError, match="shard must have 4 entries"):
        plan_epoch([1.0] * 4, config_of(4, 2), shards=shards)
    with pytest.raises(ValueError, match="costs must have 2 entries, got 4"):
        shard_bound([1.0] * 4, shards, 2)


def test_a_worker_that_can_read_nothing_in_a_step_is_named() -> None:
    shards = Shards(np.array([0, 0, 0, 0]), ((0, 1),))
    with pytest.raises(ValueError, match="worker 2 can read nothing that is left in step 0"):
        plan_epoch([1.0] * 4, config_of(4, 3), shards=shards)
