from itertools import pairwise

import numpy as np
import pytest

from paceline.balance import WHOLE_EPOCH, BalanceConfig, mixing_frontier, plan_epoch

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
