from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.balance import (
    BalanceConfig,
    EpochPlan,
    Limits,
    measure_quality,
    plan_epoch,
    regime_of,
)
from paceline.balance._quality import reunion
from paceline.cost import Worker

COSTS = st.integers(1, 30).map(float)
Steps = Sequence[Sequence[Sequence[int]]]


def hand_made(
    steps: Steps,
    costs: Sequence[float],
    *,
    padded: bool = False,
    repeats: Sequence[int] = (),
    workers: tuple[Worker, ...] | None = None,
) -> EpochPlan:
    """Return a plan of given steps, each a list of examples per worker."""
    parts = [list(part) for step in steps for part in step]
    num_workers = len(steps[0]) if steps else 1
    examples = np.array([example for part in parts for example in part], dtype=np.int64)
    is_repeat = np.zeros(len(examples), dtype=bool)
    is_repeat[list(repeats)] = True
    cost = [[costs[example] for example in part] for part in parts]
    load = [len(each) * max(each) if padded else sum(each) for each in cost]
    return EpochPlan(
        num_workers=num_workers,
        examples=examples,
        is_repeat=is_repeat,
        weighs_repeats=True,
        micro_offsets=np.cumsum([0, *map(len, parts)]),
        worker_offsets=np.arange(len(steps) * num_workers + 1),
        load=np.array(load, dtype=np.float64).reshape(-1, num_workers),
        workers=workers or (Worker(),) * num_workers,
    )


def config_of(batch_size: int = 4, num_workers: int = 2, **others: Any) -> BalanceConfig:
    return BalanceConfig(batch_size=batch_size, num_workers=num_workers, **others)


def test_imbalance_is_the_makespan_over_the_total_per_worker() -> None:
    costs = [5.0, 3.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    plan = hand_made([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], costs)
    quality = measure_quality(plan, costs, config_of())
    assert quality.imbalance == (8 + 2) / (16 / 2)
    assert (quality.num_steps, quality.num_examples, quality.reunion) == (2, 8, None)


def test_padding_counts_in_the_makespan_and_not_in_the_total() -> None:
    costs = [5.0, 1.0, 1.0, 1.0]
    plan = hand_made([[[0], [1, 2, 3]]], costs, padded=True)
    assert measure_quality(plan, costs, config_of(counts="free", padded=True)).imbalance == 5 / 4


def test_repeats_count_in_the_cost_and_not_among_the_examples() -> None:
    costs = [4.0, 2.0, 2.0]
    plan = hand_made([[[0, 1], [2, 0]]], costs, repeats=[3])
    quality = measure_quality(plan, costs, config_of())
    assert (quality.imbalance, quality.num_examples) == (1.0, 3)


def test_speeds_and_overheads_count_in_makespan_and_bound() -> None:
    workers = (Worker(overhead_s=1.0), Worker(speed=0.5, overhead_s=1.0))
    costs = [4.0, 2.0]
    plan = hand_made([[[0], [1]]], costs, workers=workers)
    quality = measure_quality(plan, costs, config_of(2, counts="free"))
    assert quality.imbalance == pytest.approx(5 / 3)
    assert quality.lower_bound == pytest.approx((1 + 6 / 1.5) / 3)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"counts": "free"}, 5 / 4),
        ({"counts": "equal"}, 6 / 4),
        ({"counts": "equal", "padded": True}, 10 / 4),
        # The most expensive one might be alone in its micro-batch.
        ({"counts": "equal", "padded": True, "num_microbatches": 2}, 6 / 4),
        ({"counts": "equal", "padded": True, "limits": Limits(max_examples=1)}, 6 / 4),
    ],
)
def test_the_most_expensive_example_and_what_fills_its_worker_up_bound_a_step(
    settings: dict[str, Any], bound: float
) -> None:
    costs = [5.0, 1.0, 1.0, 1.0]
    plan = hand_made([[[0, 1], [2, 3]]], costs)
    assert measure_quality(plan, costs, config_of(**settings)).lower_bound == bound


def test_the_mean_load_bounds_an_even_step() -> None:
    costs = [2.0, 1.0, 2.0, 1.0]
    plan = hand_made([[[0, 2], [1, 3]]], costs)
    assert measure_quality(plan, costs, config_of()).lower_bound == 1.0


def test_a_wider_window_may_put_expensive_examples_together_but_not_end_before_it() -> None:
    costs = [10.0, 1.0, 9.0, 1.0]
    plan = hand_made([[[0], [1]], [[2], [3]]], costs)
    assert measure_quality(plan, costs, config_of(2)).lower_bound == 19 / 10.5
    assert measure_quality(plan, costs, config_of(2, window=2)).lower_bound == 11 / 10.5
    alone = [10.0, 1.0, 1.0, 1.0]
    quality = measure_quality(plan, alone, config_of(2, window=2))
    assert quality.lower_bound == pytest.approx(11 / 6.5)


def least_makespan(costs: Sequence[float], config: BalanceConfig) -> float:
    """Try all splits of one step over two workers."""
    counts = [len(costs) // 2] if config.counts == "equal" else range(1, len(costs))
    pay = (lambda part: len(part) * max(part)) if config.padded else sum
    splits = [
        (mine, [index for index in range(len(costs)) if index not in mine])
        for count in counts
        for mine in combinations(range(len(costs)), count)
    ]
    return float(min(max(pay([costs[i] for i in part]) for part in both) for both in splits))


def best_epoch(costs: Sequence[float], config: BalanceConfig) -> float:
    """Try all ways to make two steps of two workers."""
    half = len(costs) // 2
    everything = range(len(costs))
    return min(
        sum(
            least_makespan([costs[i] for i in step], config)
            for step in (first, [i for i in everything if i not in first])
        )
        for first in combinations(everything, half)
    )


SETTINGS = st.fixed_dictionaries(
    {"counts": st.sampled_from(["equal", "free"]), "padded": st.booleans()}
)


@given(costs=st.lists(COSTS, min_size=8, max_size=8), settings=SETTINGS)
def test_no_split_of_the_steps_is_below_the_bound(
    costs: list[float], settings: dict[str, Any]
) -> None:
    plan = hand_made([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], costs)
    config = config_of(**settings)
    best = least_makespan(costs[:4], config) + least_makespan(costs[4:], config)
    assert measure_quality(plan, costs, config).lower_bound <= best / (sum(costs) / 2) + 1e-12


@given(costs=st.lists(COSTS, min_size=8, max_size=8), settings=SETTINGS)
def test_no_composition_of_the_steps_is_below_the_bound_of_a_wide_window(
    costs: list[float], settings: dict[str, Any]
) -> None:
    plan = hand_made([[[0, 1], [2, 3]], [[4, 5], [6, 7]]], costs)
    config = config_of(window=2, **settings)
    bound = measure_quality(plan, costs, config).lower_bound
    assert 1 - 1e-12 <= bound <= best_epoch(costs, config) / (sum(costs) / 2) + 1e-12


@given(
    costs=st.lists(COSTS, min_size=12, max_size=80),
    settings=SETTINGS,
    window=st.sampled_from([1, 2, 100]),
    tail=st.sampled_from(["drop", "pad", "wrap", "zero-weight"]),
    speed=st.sampled_from([1.0, 0.25]),
)
def test_a_plan_is_never_below_its_bound(
    costs: list[float], settings: dict[str, Any], window: int, tail: Any, speed: float
) -> None:
    config = config_of(12, 3, window=window, tail=tail, **settings)
    workers = (Worker(), Worker(speed=speed), Worker())
    plan = plan_epoch(costs, config, workers=workers)
    quality = measure_quality(plan, costs, config)
    assert quality.imbalance >= quality.lower_bound - 1e-9


def reunion_by_hand(before: Sequence[set[int]], after: Sequence[set[int]]) -> float:
    """Count the pairs one by one."""

    def pairs(steps: Sequence[set[int]]) -> set[tuple[int, int]]:
        return {pair for step in steps for pair in combinations(sorted(step & common), 2)}

    common = set.union(*before) & set.union(*after)
    num_pairs = len(common) * (len(common) - 1) / 2
    by_chance = len(pairs(before)) * len(pairs(after))
    return len(pairs(before) & pairs(after)) * num_pairs / by_chance if by_chance else 1.0


@given(
    orders=st.tuples(st.permutations(range(14)), st.permutations(range(14))),
    num_kept=st.integers(2, 14),
    per_step=st.integers(1, 5),
)
def test_reunion_counts_the_pairs_that_meet_again(
    orders: tuple[list[int], list[int]], num_kept: int, per_step: int
) -> None:
    """Each epoch leaves out other examples, and the last step is short."""
    steps = [
        [[order[at : min(at + per_step, num_kept)]] for at in range(0, num_kept, per_step)]
        for order in orders
    ]
    before, after = (hand_made(each, [1.0] * 14) for each in steps)
    by_hand = reunion_by_hand(*([set(step[0]) for step in each] for each in steps))
    assert reunion(before, after) == pytest.approx(by_hand)


def test_reunion_of_all_shuffles_is_one_on_average() -> None:
    costs = [1.0] * 5
    plan = hand_made([[[0, 1]], [[2, 3, 4]]], costs)
    all_others = [
        hand_made([[[a, b]], [[c, d, e]]], costs) for a, b, c, d, e in permutations(range(5))
    ]
    assert np.mean([reunion(plan, other) for other in all_others]) == pytest.approx(1.0)


def test_reunion_of_an_epoch_that_is_not_shuffled_is_the_most_there_is() -> None:
    costs = np.ones(64)
    config = config_of(8, 2, shuffle=False)
    plans = [plan_epoch(costs, config, epoch=epoch) for epoch in (0, 1)]
    assert measure_quality(plans[0], costs, config, plans[1]).reunion == pytest.approx(63 / 7)


def test_repeats_meet_nobody() -> None:
    costs = [1.0] * 4
    plan = hand_made([[[0], [1]], [[2], [3]]], costs)
    wrapped = hand_made([[[0], [2]], [[1], [3]], [[2], [3]]], costs, repeats=[4, 5])
    assert reunion(plan, wrapped) == 0.0


def test_without_pairs_reunion_is_that_of_chance() -> None:
    plan = hand_made([[[0]], [[1]]], [1.0, 1.0])
    assert reunion(plan, plan) == 1.0


def test_steps_that_take_turns_are_autocorrelated_below_zero() -> None:
    costs = [9.0, 1.0, 9.0, 1.0]
    plan = hand_made([[[0]], [[1]], [[2]], [[3]]], costs)
    assert measure_quality(plan, costs, config_of(1, 1)).cost_autocorrelation == -0.75


@pytest.mark.parametrize("steps", [[], [[[0, 1]]]])
def test_what_costs_nothing_is_balanced(steps: Steps) -> None:
    quality = measure_quality(hand_made(steps, [0.0, 0.0]), [0.0, 0.0], config_of(2, 1))
    assert (quality.imbalance, quality.lower_bound) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([1.0], "costs must have at least 2 entries, got 1"),
        ([1.0, np.nan], "costs must be finite and non-negative"),
        ([-1.0, 1.0], "costs must be finite and non-negative"),
        ([1e308, 1e308], "costs are too large to add up"),
    ],
)
def test_bad_costs_are_refused(costs: list[float], message: str) -> None:
    plan = hand_made([[[0, 1]]], [1.0, 1.0])
    with pytest.raises(ValueError, match=message):
        measure_quality(plan, costs, config_of(2, 1))


def skewed(num_examples: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.random.default_rng(0).lognormal(0.0, 1.0, num_examples)


def test_a_regime_where_balancing_helps_states_the_gain() -> None:
    regime = regime_of(skewed(4096), config_of(64, 4))
    assert regime.kind == "balancing helps"
    assert regime.plain > 1.1 > 1.01 > regime.planned
    assert regime.remedy is None
    assert f"{regime.plain / regime.planned:.2f} times" in str(regime)


def test_the_sample_of_a_short_epoch_is_the_epoch() -> None:
    costs, config = skewed(1024), config_of(64, 4)
    regime = regime_of(costs, config)
    quality = measure_quality(plan_epoch(costs, config), costs, config)
    assert (regime.planned, regime.num_steps) == (pytest.approx(quality.imbalance), 16)
    assert regime.bound == pytest.approx(quality.lower_bound)
    assert quality.lower_bound <= regime.planned <= regime.plain


def test_equal_counts_on_a_padded_model_are_pointed_to_free_ones() -> None:
    regime = regime_of(skewed(4096), config_of(64, 4, padded=True))
    assert regime.kind == "padding"
    assert "counts='free'" in str(regime)
    assert regime.remedied is not None
    assert regime.remedied < 0.5 * regime.planned


def test_one_expensive_example_per_step_is_pointed_to_a_wider_window() -> None:
    costs = np.ones(64 * 32)
    costs[::64] = 100.0
    regime = regime_of(costs, config_of(64, 4, shuffle=False))
    assert (regime.kind, regime.expensive_share, regime.num_steps) == (
        "expensive examples",
        1.0,
        32,
    )
    assert regime.bound == pytest.approx((100 + 15) / (163 / 4))
    assert regime.remedy == "window=16"
    assert "100% of the steps" in str(regime)
    assert regime.remedied is not None
    assert regime.remedied < 1.1


def test_even_costs_leave_nothing_to_gain() -> None:
    regime = regime_of(np.ones(1000), config_of(10, 5, padded=True))
    assert regime.kind == "already even"
    assert (regime.plain, regime.planned, regime.remedy) == (1.0, 1.0, None)
    assert "less than 2 % to gain" in str(regime)


def test_examples_that_cost_nothing_are_even() -> None:
    assert regime_of(np.zeros(64), config_of(8, 2)).kind == "already even"


def test_a_regime_looks_at_a_few_steps_of_a_long_epoch() -> None:
    assert regime_of(skewed(100_000), config_of(100, 4)).num_steps == 64
    assert regime_of(skewed(100_000), config_of(100, 4, shuffle=False)).num_steps == 64
    assert regime_of(skewed(400_000), config_of(100_000, 4)).num_steps == 1


@given(
    costs=st.lists(COSTS, min_size=3, max_size=60),
    settings=SETTINGS,
    window=st.sampled_from([1, 3, 10**9]),
    batch_size=st.sampled_from([3, 6, 30]),
    shuffle=st.booleans(),
)
def test_every_regime_can_be_told(
    costs: list[float],
    settings: dict[str, Any],
    window: int,
    batch_size: int,
    shuffle: bool,
) -> None:
    config = config_of(batch_size, 3, window=window, shuffle=shuffle, **settings)
    regime = regime_of(costs, config)
    assert regime.bound - 1e-9 <= regime.planned
    assert regime.bound - 1e-9 <= regime.plain or window > 1
    assert regime.remedied is None or regime.remedied < regime.planned
    assert str(regime).count("Simulated") == 1
    assert regime_of(costs, replace(config, tail="drop")) == regime


def test_a_regime_does_not_ask_for_the_sizes_of_a_limit() -> None:
    config = config_of(64, 4, limits=Limits(max_tokens=1.0))
    assert regime_of(skewed(128), config).num_steps == 2


def test_a_regime_of_fewer_examples_than_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="1 examples are fewer than 2 workers"):
        regime_of([1.0], config_of())


@given(
    cost=st.lists(st.integers(1, 50), min_size=16, max_size=64),
    num_workers=st.sampled_from([1, 2, 4]),
    microbatch_cost=st.sampled_from([None, 0.0, 1.0, 200.0]),
)
def test_planned_micro_batches_never_cost_more_than_one_batch_per_worker(
    cost: list[int], num_workers: int, microbatch_cost: float | None
) -> None:
    config = BalanceConfig(
        batch_size=8,
        num_workers=num_workers,
        counts="free",
        padded=True,
        num_microbatches="auto",
        microbatch_cost=microbatch_cost,
    )
    regime = regime_of(np.array(cost, dtype=np.float64), config)
    assert regime.planned <= regime.plain * (1 + 1e-9)


def test_equal_lengths_gain_nothing_from_micro_batches_and_are_not_cut() -> None:
    config = BalanceConfig(
        batch_size=32, num_workers=2, counts="free", padded=True, num_microbatches="auto"
    )
    costs = np.full(640, 100.0)
    regime = regime_of(costs, config)
    assert regime.kind == "already even"
    assert regime.plain == regime.planned == pytest.approx(1 + 2 / 32)
    assert plan_epoch(costs, config).num_microbatches.max() == 1
