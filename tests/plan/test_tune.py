from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plan.jobs import jobs, ragged_job

from paceline.balance import BalanceConfig
from paceline.comm import WireProblem, plan_blocks, plan_ddp, plan_p3, step_time_s
from paceline.cost import Job, LayerCost, Link, Worker
from paceline.overlap import LanePlan
from paceline.plan import Change, StepParts, blocks_of, simulate_schedule, step_graph, tune
from paceline.timeline import simulate

CONFIG = BalanceConfig(batch_size=16)


@settings(max_examples=15, deadline=None)
@given(job=jobs(), padded=st.booleans(), change=st.sampled_from(["nothing", "numerics"]))
def test_never_worse_than_plain_and_what_it_promises_is_what_is_simulated(
    job: Job, padded: bool, change: Change
) -> None:
    config = BalanceConfig(batch_size=2 * len(job.workers), padded=padded, microbatch_cost=1.0)
    schedule = tune(job, config, may_change=change, num_steps=3)
    assert schedule.step_s <= schedule.plain_step_s
    assert schedule.is_plain == (schedule.gain == 0.0)
    again = simulate_schedule(job, schedule, num_steps=3).summary()
    assert again.step_times_s.mean() == pytest.approx(schedule.step_s)


@pytest.mark.parametrize(
    ("job", "config", "expected"),
    [
        (ragged_job(spread=0.0, bytes_per_s=1e12), CONFIG, {"is_plain": True}),
        (ragged_job(bytes_per_s=1e12), CONFIG, {"is_balanced": True, "bucket_cap_mb": 25}),
        (ragged_job(spread=0.0, bytes_per_s=4e8), CONFIG, {"is_balanced": False}),
        (ragged_job(spread=0.0, bytes_per_s=4e8), None, {"bucket_cap_mb": None, "config": None}),
        (ragged_job(num_workers=1), CONFIG, {"is_plain": True, "gain": 0.0}),
    ],
    ids=["nothing wins", "ragged", "slow link", "slow link, no sizes", "one worker"],
)
def test_each_part_is_taken_where_it_wins(
    job: Job, config: BalanceConfig | None, expected: dict[str, object]
) -> None:
    schedule = tune(job, config)
    assert {name: getattr(schedule, name) for name in expected} == expected
    assert schedule.is_plain == str(schedule).startswith("plain data parallel training stays")


@pytest.mark.parametrize(
    ("rate", "change", "taken"),
    [
        (1e12, "nothing", "nothing"),
        (1e12, "order of data", "order of data"),
        (4e8, "order of data", "nothing"),
        (4e8, "numerics", "numerics"),
    ],
)
def test_what_changes_more_is_tried_only_if_it_may_be(
    rate: float, change: Change, taken: str
) -> None:
    job = ragged_job(bytes_per_s=rate, spread=1.0)
    config = BalanceConfig(batch_size=16, padded=True, microbatch_cost=1e5)
    schedule = tune(job, config, may_change=change)
    assert schedule.changes == taken
    assert (schedule.compression is not None) == (taken == "numerics")
    assert schedule.config is not None
    assert (schedule.config.window > 1) == (taken == "order of data")


def test_an_order_that_is_asked_for_stays() -> None:
    schedule = tune(ragged_job(spread=0.0), CONFIG, order="pair-balance", may_change="numerics")
    assert schedule.order == "pair-balance"
    assert schedule.is_balanced
    assert schedule.config is not None
    assert schedule.config.window == 1
    assert "order='pair-balance'" in "".join(schedule.lines)


def test_workers_on_shared_cores_gain_less_from_balance() -> None:
    """On one core, whoever waits for the slowest leaves it the core."""
    job = ragged_job(num_workers=4, bytes_per_s=1e12)
    gains = [
        tune(replace(job, slowdown=slowdown), CONFIG).gain
        for slowdown in ((), (3.0, 3.0, 3.0, 4.0), (1.0, 2.0, 3.0, 4.0))
    ]
    assert gains[0] > gains[1] > gains[2] == 0.0


def test_lanes_are_priced_with_the_rest() -> None:
    job = ragged_job(spread=0.0, bytes_per_s=1e12)
    lanes = LanePlan(deferred=("0",), plain_s=1.0, predicted_s=0.8, reason="")
    schedule = tune(job, CONFIG, lanes=lanes)
    assert (schedule.deferred, schedule.gain > 0.15) == (("0",), True)
    run = simulate_schedule(job, schedule, lanes=lanes)
    assert run.summary().step_times_s.mean() == pytest.approx(schedule.step_s)


def test_no_assignment_and_no_bucket_of_a_tiny_job_is_better() -> None:
    """Every way to deal eight examples to two workers, and both ways to send two layers."""
    layer = LayerCost(name="", forward_s=1.0, backward_s=1.0, gradient_bytes=30 << 20)
    job = Job(
        source="predicted",
        layers=(layer, layer),
        link=Link(0.25, float(60 << 20)),
        workers=(Worker(), Worker()),
        sizes=np.array([9.0, 1.0, 1.0, 1.0, 5.0, 3.0, 2.0, 2.0]),
    )
    schedule = tune(job, BalanceConfig(batch_size=8), seconds_per_cost=1.0)
    loads = {job.sizes[list(mine[:4])].sum() for mine in permutations(range(8))}
    largest_s = min(max(load, job.sizes.sum() - load) for load in loads)
    # Forward pass, both halves of the backward pass, then one block or two.
    together = largest_s + 1.25
    apart = max(largest_s, 0.75 * largest_s + 0.75) + 0.75
    assert schedule.step_s <= min(together, apart) + 1e-9
    assert schedule.is_balanced


@pytest.mark.parametrize("planner", [plan_ddp, plan_p3, plan_blocks])
@pytest.mark.parametrize("rate", [2e8, 2e9])
def test_blocks_take_what_the_judge_of_plans_says(planner: object, rate: float) -> None:
    """On equal workers without updates; the judge starts with the backward pass."""
    job = ragged_job(bytes_per_s=rate)
    job = replace(job, workers=(Worker(), Worker()))
    problem = WireProblem.from_job(job)
    plan = planner(problem, **({"in_halves": False} if planner is plan_blocks else {}))  # type: ignore[operator]
    parts = StepParts.of_blocks(
        job, blocks_of(problem, plan), waits_for_all=bool(plan.waits_for_all)
    )
    ends = [simulate(step_graph(job, np.full((num, 2), 0.06), parts)).makespan_s for num in (6, 16)]
    assert (ends[1] - ends[0]) / 10 == pytest.approx(step_time_s(problem, plan), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"may_change": "all"}, "may_change must be one of nothing, order of data, numerics"),
        ({"num_steps": 0}, "num_steps at least 1"),
        ({"config": BalanceConfig(batch_size=1024)}, "at least one batch of 1024 examples"),
        ({"config": BalanceConfig(batch_size=15)}, "batch size that num_workers"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(ragged_job(), **{"config": CONFIG, **change})  # type: ignore[arg-type]
