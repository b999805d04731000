from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from paceline.balance import (
    WHOLE_EPOCH,
    BalanceConfig,
    MixingStop,
    knee_of,
    mixing_frontier,
    plan_epoch,
)

CONFIG = BalanceConfig(
    batch_size=32, num_workers=2, counts="free", padded=True, num_microbatches="auto"
)
COSTS = np.random.default_rng(0).lognormal(np.log(350), 1.1, 640).clip(8, 8192).round()


def test_each_stop_says_what_its_own_plan_reaches() -> None:
    stops = mixing_frontier(COSTS, CONFIG, windows=(1, 4, 20, 21))
    assert [stop.window for stop in stops] == [1, 4, WHOLE_EPOCH]
    plan = plan_epoch(COSTS, CONFIG)
    assert stops[0].imbalance == pytest.approx(plan.makespan() / (COSTS.sum() / 2))
    computed = 0.0
    for step in range(plan.num_steps):
        for worker in range(2):
            for slots in plan.micro_batches(step, worker):
                cost = COSTS[plan.examples[slots]]
                computed += len(cost) * cost.max()
    assert stops[0].padding == pytest.approx(1 - COSTS.sum() / computed)


def test_a_wider_window_pads_less_and_mixes_less() -> None:
    stops = mixing_frontier(COSTS, CONFIG, windows=(1, 4, WHOLE_EPOCH))
    for narrow, wide in pairwise(stops):
        assert narrow.padding > wide.padding
        assert narrow.imbalance > wide.imbalance
        assert narrow.reunion < wide.reunion


def test_without_padding_there_is_none() -> None:
    config = BalanceConfig(batch_size=32, num_workers=2)
    assert [stop.padding for stop in mixing_frontier(COSTS, config, windows=(1, 2))] == [0, 0]


def stop(window: int, imbalance: float, reunion: float) -> MixingStop:
    return MixingStop(window=window, mixing=0.5, imbalance=imbalance, padding=0.0, reunion=reunion)


@pytest.mark.parametrize(
    ("values", "knee"),
    [
        ([(1, 1.01, 1.0), (8, 1.0, 1.0)], 1),
        ([(1, 2.0, 1.0), (8, 1.1, 1.2), (64, 1.05, 9.0)], 8),
        ([(1, 9.0, 1.0), (8, 4.0, 1.2), (64, 1.1, 4.0)], 64),
        ([(1, 2.0, 1.0), (8, 1.0, 1.0)], 8),
        ([(1, 1.5, 1.0)], 1),
    ],
)
def test_the_knee_is_the_first_stop_that_is_nearly_as_even_as_any(
    values: list[tuple[int, float, float]], knee: int
) -> None:
    assert knee_of([stop(*value) for value in values]).window == knee


def test_the_values_of_the_dial_mean_the_windows_of_the_frontier() -> None:
    for stop in mixing_frontier(COSTS, CONFIG, windows=(1, 4, 21)):
        meant = replace(CONFIG, mixing=stop.mixing).with_window(len(COSTS))
        assert meant == replace(CONFIG, window=min(stop.window, 20))
        assert plan_epoch(COSTS, replace(CONFIG, mixing=stop.mixing)).examples.tolist() == (
            plan_epoch(COSTS, replace(CONFIG, window=stop.window)).examples.tolist()
        )
    with pytest.raises(ValueError, match="between 0"):
        replace(CONFIG, mixing=1.5)
    with pytest.raises(ValueError, match="no stop"):
        knee_of([])
