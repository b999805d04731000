import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, measure_quality, plan_epoch
from paceline.balance._strata import RUNS_PER_WORKER, compose_strata


def config_of(**settings: int) -> BalanceConfig:
    return BalanceConfig(
        counts="free", padded=True, num_microbatches="auto", tail="drop", **settings
    )


def text_costs(seed: int, num_examples: int) -> NDArray[np.float64]:
    sizes = np.random.default_rng(seed).lognormal(np.log(350), 1.1, num_examples)
    return sizes.clip(8, 8192).round()


@given(
    num_steps=st.integers(0, 20),
    per_worker=st.integers(1, 9),
    num_workers=st.integers(1, 4),
    window=st.integers(2, 25),
    top=st.sampled_from([0, 1, 50]),
    seed=st.integers(0, 9),
)
def test_each_step_has_a_run_of_every_stratum_of_its_window(
    num_steps: int, per_worker: int, num_workers: int, window: int, top: int, seed: int
) -> None:
    batch_size = per_worker * num_workers
    config = config_of(batch_size=batch_size, num_workers=num_workers, window=window)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(num_steps * batch_size)
    costs = rng.integers(0, top + 1, len(shuffled)).astype(np.float64)
    steps = compose_strata(costs, shuffled, config, (seed,))
    assert steps.shape == (num_steps, batch_size)
    num_runs = max(min(RUNS_PER_WORKER * num_workers, batch_size // 2), 1)
    ends = [(i + 1) * batch_size // num_runs for i in range(num_runs)]
    for first in range(0, num_steps, window):
        here = steps[first : first + window]
        before = shuffled[first * batch_size : (first + window) * batch_size]
        by_cost = before[np.argsort(costs[before], kind="stable")].tolist()
        for begin, end in zip([0, *ends], ends, strict=False):
            size, num_here = end - begin, len(here)
            stratum = by_cost[begin * num_here : end * num_here]
            runs = {tuple(stratum[i : i + size]) for i in range(0, len(stratum), size)}
            assert {tuple(step[begin:end].tolist()) for step in here} == runs


@pytest.mark.parametrize(("num_workers", "at_most"), [(1, 0.93), (2, 0.95), (4, 0.96)])
def test_steps_of_runs_cost_less_than_shuffled_ones_and_mix_nearly_as_well(
    num_workers: int, at_most: float
) -> None:
    costs = text_costs(0, 160 * 16 * num_workers)
    settings = {"batch_size": 16 * num_workers, "num_workers": num_workers}
    plain, runs = config_of(**settings), config_of(**settings, window=8)
    a, b = (plan_epoch(costs, runs, epoch=epoch) for epoch in (0, 1))
    assert a.makespan() < at_most * plan_epoch(costs, plain).makespan()
    reunion = measure_quality(a, costs, runs, b).reunion
    # Sorted slices of the same window would meet again more than five times likelier.
    assert reunion is not None
    assert 1.0 < reunion < 2.5


def test_epochs_draw_anew_and_repeat_themselves() -> None:
    costs = text_costs(1, 640)
    config = config_of(batch_size=32, num_workers=2, window=8)
    again = [plan_epoch(costs, config, epoch=epoch).examples for epoch in (0, 0, 1)]
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])
