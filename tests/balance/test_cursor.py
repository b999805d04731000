import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.balance import (
    BalanceConfig,
    Cursor,
    EpochPlan,
    EpochPlanner,
    Limits,
    Tail,
    micro_batches_of,
    plan_epoch,
)
from paceline.cost import Worker
from paceline.errors import StateMismatchError

SIZES = [5.0, 1.0, 4.0, 2.0, 8.0, 3.0, 7.0, 6.0, 1.0, 9.0]
CONFIG = BalanceConfig(batch_size=4, num_workers=2)
TAILS: tuple[Tail, ...] = ("drop", "pad", "wrap", "zero-weight")
configs = st.builds(
    BalanceConfig,
    batch_size=st.just(12),
    num_workers=st.sampled_from([1, 2, 3]),
    counts=st.sampled_from(["equal", "free"]),
    padded=st.booleans(),
    window=st.sampled_from([1, 3]),
    num_microbatches=st.sampled_from([1, 2]),
    tail=st.sampled_from(TAILS),
    longest_first=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 3),
)
sizes = st.lists(st.integers(0, 50), min_size=12, max_size=60)


def start(config: BalanceConfig, epoch: int = 0) -> Cursor:
    return Cursor(workers=(Worker(),) * config.num_workers, epoch=epoch)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False))
    return result


def delivered(plan: EpochPlan, first_step: int, num_steps: int) -> list[int]:
    """Return what all workers receive in some steps, repeats left out."""
    slots = [
        slot
        for step in range(first_step, first_step + num_steps)
        for worker in range(plan.num_workers)
        for part in plan.micro_batches(step, worker)
        for slot in part
    ]
    return [int(plan.examples[slot]) for slot in slots if not plan.is_repeat[slot]]


def batches_of(planner: EpochPlanner, cursor: Cursor, worker: int) -> list[Any]:
    plan = planner.plan(cursor)
    found = micro_batches_of(plan, worker, first_step=cursor.num_steps)
    return [(b.step, b.examples.tolist(), b.loss_weight, b.is_step_end) for b in found]


def expected_examples(sizes: list[int], config: BalanceConfig, epoch: int) -> list[int]:
    """Return the examples of an epoch that nothing interrupts."""
    plan = plan_epoch(sizes, config, epoch=epoch)
    return sorted(plan.examples[~plan.is_repeat].tolist())


@given(sizes, configs, st.integers(0, 2))
def test_restoring_at_every_step_goes_on_with_the_same_stream(
    sizes: list[int], config: BalanceConfig, epoch: int
) -> None:
    planner = EpochPlanner(sizes, config)
    begin = start(config, epoch)
    straight = [batches_of(planner, begin, worker) for worker in range(config.num_workers)]
    for step in range(planner.plan(begin).num_steps + 1):
        state = through_json(planner.state_dict(replace(begin, num_steps=step)))
        fresh = EpochPlanner(sizes, config)
        cursor = fresh.load_state_dict(state)
        assert cursor == replace(begin, num_steps=step)
        assert fresh.state_dict(cursor) == state
        for worker, batches in enumerate(straight):
            assert batches_of(fresh, cursor, worker) == [b for b in batches if b[0] >= step]


@given(sizes, configs, st.data())
def test_no_example_is_lost_or_repeated_however_the_number_of_workers_changes(
    sizes: list[int], config: BalanceConfig, data: st.DataObject
) -> None:
    received: list[int] = []
    cursor, state = start(config), None
    present = config
    for num_workers in [config.num_workers, *data.draw(st.lists(st.sampled_from([1, 2, 3, 4, 6])))]:
        present = replace(present, num_workers=num_workers)
        planner = EpochPlanner(sizes, present)
        cursor = start(present) if state is None else planner.load_state_dict(state)
        plan = planner.plan(cursor)
        num_steps = data.draw(st.integers(0, plan.num_steps - cursor.num_steps))
        received += delivered(plan, cursor.num_steps, num_steps)
        state = through_json(
            planner.state_dict(replace(cursor, num_steps=cursor.num_steps + num_steps))
        )
    planner = EpochPlanner(sizes, present)
    cursor = planner.load_state_dict(state or {})
    plan = planner.plan(cursor)
    received += delivered(plan, cursor.num_steps, plan.num_steps - cursor.num_steps)
    assert sorted(received) == expected_examples(sizes, config, epoch=0)


@given(sizes, configs)
def test_weighted_means_of_all_workers_are_the_mean_over_the_global_batch(
    sizes: list[int], config: BalanceConfig
) -> None:
    planner = EpochPlanner(sizes, config)
    plan = planner.plan(start(config))
    losses = np.arange(len(sizes)) ** 2.0
    weighted = np.zeros(plan.num_steps)
    for worker in range(config.num_workers):
        for batch in micro_batches_of(plan, worker):
            weighted[batch.step] += batch.loss_weight * losses[batch.examples].mean()
    for step in range(plan.num_steps):
        slots = slice(*plan.micro_offsets[plan.step_offsets[[step, step + 1]]])
        counts = ~plan.is_repeat[slots] | (config.tail in ("pad", "wrap"))
        mean = losses[plan.examples[slots]][counts].mean()
        assert weighted[step] / config.num_workers == pytest.approx(mean)


@given(sizes, configs)
def test_every_worker_receives_equally_many_micro_batches_and_none_is_empty(
    sizes: list[int], config: BalanceConfig
) -> None:
    plan = plan_epoch(sizes, config)
    received = [list(micro_batches_of(plan, worker)) for worker in range(config.num_workers)]
    shapes = {tuple((b.step, b.is_step_end) for b in batches) for batches in received}
    assert len(shapes) == 1
    assert all(len(b.examples) for batches in received for b in batches)


def test_other_workers_share_the_same_global_batches() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    straight = planner.plan(start(CONFIG))
    state = planner.state_dict(replace(start(CONFIG), num_steps=1))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=4))
    plan = elsewhere.plan(elsewhere.load_state_dict(state))
    assert [sorted(delivered(plan, step, 1)) for step in (0, 1)] == [
        sorted(delivered(straight, step, 1)) for step in (1, 2)
    ]


def test_more_workers_than_examples_are_left_can_still_finish() -> None:
    planner = EpochPlanner(SIZES, replace(CONFIG, num_workers=1))
    state = planner.state_dict(replace(start(planner.config), num_steps=2))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=4))
    plan = elsewhere.plan(elsewhere.load_state_dict(state))
    weights = [[b.loss_weight for b in micro_batches_of(plan, worker)] for worker in range(4)]
    assert sorted(weights) == [[0.0], [0.0], [2.0], [2.0]]


def test_a_finished_epoch_leaves_nothing_for_other_workers() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    state = planner.state_dict(replace(start(CONFIG), num_steps=3))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=4))
    cursor = elsewhere.load_state_dict(state)
    assert elsewhere.plan(cursor).num_steps == 0
    assert elsewhere.state_dict(cursor)["segments"][1]["num_steps"] == 0


def test_workers_who_deliver_nothing_leave_no_trace() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    state = planner.state_dict(replace(start(CONFIG), num_steps=1))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=4))
    passed_on = elsewhere.state_dict(elsewhere.load_state_dict(state))
    assert planner.load_state_dict(passed_on) == replace(start(CONFIG), num_steps=1)


def test_micro_batches_may_change_within_an_epoch() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    state = planner.state_dict(replace(start(CONFIG), num_steps=1))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=1, num_microbatches=2))
    cursor = elsewhere.load_state_dict(state)
    assert [b[0] for b in batches_of(elsewhere, cursor, 0)] == [0, 0, 1, 1]


def test_speeds_are_part_of_the_state() -> None:
    workers = (Worker(speed=0.25, overhead_s=0.1), Worker())
    planner = EpochPlanner(SIZES, replace(CONFIG, counts="free"))
    cursor = Cursor(workers=workers, num_steps=1)
    state = through_json(planner.state_dict(cursor))
    assert planner.load_state_dict(state) == cursor
    assert planner.load_state_dict(state, (Worker(), Worker(speed=3.0))) == cursor


def test_present_speeds_count_once_the_number_of_workers_changed() -> None:
    state = EpochPlanner(SIZES, CONFIG).state_dict(replace(start(CONFIG), num_steps=1))
    workers = tuple(Worker(speed=float(speed)) for speed in (1, 2, 3, 4))
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=4))
    assert elsewhere.load_state_dict(state, workers).workers == workers


def test_loading_leaves_the_state_unchanged() -> None:
    planner = EpochPlanner(SIZES, replace(CONFIG, limits=Limits(max_cost=40)))
    state = planner.state_dict(replace(start(CONFIG), num_steps=2))
    before = copy.deepcopy(state)
    planner.load_state_dict(state)
    EpochPlanner(SIZES, replace(planner.config, num_workers=1)).load_state_dict(state)
    assert state == before


STATE = EpochPlanner(SIZES, CONFIG).state_dict(replace(start(CONFIG), num_steps=1))


def changed(**values: Any) -> dict[str, Any]:
    return {**STATE, **values}


def with_segment(**values: Any) -> dict[str, Any]:
    return changed(segments=[{**STATE["segments"][0], **values}])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no 'version'"),
        (changed(version=2), "has version 2, and this paceline reads version 1"),
        ({"version": 1}, r"has no 'dataset' \(found: version\)"),
        (changed(dataset={"num_examples": 9, "digest": ""}), "of 9 examples, this one has 10"),
        (changed(dataset={"num_examples": 10, "digest": "x"}), "other sizes, shards or cost model"),
        (changed(dataset={"num_examples": 10, "digest": 3}), "'digest' must be a str, got 3"),
        (changed(config={**STATE["config"], "seed": 7}), "seed was 7 and is 0; only num_workers"),
        (changed(config=[]), "'config' must be a Mapping"),
        (changed(epoch=-1), "'epoch' must be a whole number from 0 up, got -1"),
        (changed(epoch=True), "'epoch' must be a whole number from 0 up, got True"),
        (changed(epoch=1), "the plan of epoch 1 for 2 workers comes out other"),
        (changed(segments=[]), "'segments' is empty"),
        (changed(segments=[3]), "a segment is 3"),
        (with_segment(num_steps=4), "the plan of epoch 0 for 2 workers comes out other"),
        (with_segment(plan="0"), "the plan of epoch 0 for 2 workers comes out other"),
        (with_segment(plan=None), "'plan' must be a str, got None"),
        (with_segment(num_workers=0), "'num_workers' must be a whole number from 1 up"),
        (with_segment(num_workers=3), "3 workers have 2 speeds"),
        (with_segment(speeds=[1.0, -1.0]), "speed must be finite and positive, got -1.0"),
        (with_segment(speeds=["1", "1"]), "damaged"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(StateMismatchError, match=message):
        EpochPlanner(SIZES, CONFIG).load_state_dict(state)


def test_an_earlier_segment_that_comes_out_otherwise_is_refused() -> None:
    elsewhere = EpochPlanner(SIZES, replace(CONFIG, num_workers=1))
    with pytest.raises(StateMismatchError, match="the plan of epoch 0 for 2 workers"):
        elsewhere.load_state_dict(with_segment(plan="0"))


@pytest.mark.parametrize("values", [[1.0] * 9, [[1.0] * 10], [np.nan] * 10])
def test_sizes_that_do_not_fit_the_costs_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"^sizes must"):
        EpochPlanner(SIZES, CONFIG, sizes=values)


def test_a_plan_made_ahead_is_the_same() -> None:
    planner, other = EpochPlanner(SIZES, CONFIG), EpochPlanner(SIZES, CONFIG)
    planner.plan_ahead(start(CONFIG, 1))
    planner.plan_ahead(start(CONFIG, 1))
    plan = planner.plan(start(CONFIG, 1))
    assert plan.examples.tolist() == other.plan(start(CONFIG, 1)).examples.tolist()
    assert planner.plan(start(CONFIG, 1)) is plan
    planner.plan_ahead(start(CONFIG, 1))


def test_an_error_of_a_plan_made_ahead_is_raised_where_it_is_needed() -> None:
    planner = EpochPlanner([1.0], CONFIG)
    planner.plan_ahead(start(CONFIG))
    with pytest.raises(ValueError, match="1 examples are fewer than 2 workers"):
        planner.plan(start(CONFIG))


def test_only_the_newest_plans_are_kept() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    plans = [planner.plan(start(CONFIG, epoch)) for epoch in range(3)]
    assert planner.plan(start(CONFIG, 1)) is plans[1]
    assert planner.plan(start(CONFIG, 0)) is not plans[0]


def test_a_planner_can_be_pickled_while_it_plans_ahead() -> None:
    planner = EpochPlanner(SIZES, CONFIG)
    planner.plan_ahead(start(CONFIG))
    twin = pickle.loads(pickle.dumps(planner))
    assert twin.state_dict(start(CONFIG)) == planner.state_dict(start(CONFIG))
