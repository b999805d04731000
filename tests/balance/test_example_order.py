import json
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
    ExampleOrder,
    Shards,
    Tail,
    delivery_of,
    micro_batches_of,
    plan_epoch,
)
from paceline.cost import Worker
from paceline.errors import StateMismatchError
from paceline.order import halve_and_herd, pair_balance, stratified

NUM = 30
COSTS = np.random.default_rng(0).integers(1, 40, NUM)
ROWS = np.random.default_rng(1).integers(-9, 10, (NUM, 4))
CONFIG = BalanceConfig(batch_size=8, num_workers=2)
TAILS: tuple[Tail, ...] = ("drop", "pad", "wrap", "zero-weight")


def start(num_workers: int = 2, epoch: int = 0) -> Cursor:
    return Cursor(workers=(Worker(),) * num_workers, epoch=epoch)


def planner_of(order: ExampleOrder | None, num_workers: int = 2) -> EpochPlanner:
    return EpochPlanner(COSTS, replace(CONFIG, num_workers=num_workers), order=order)


def learnt(num_epochs: int = 1) -> halve_and_herd:
    order = halve_and_herd(NUM)
    for _ in range(num_epochs):
        order.observe(np.arange(NUM), ROWS)
        order.end_epoch()
    return order


def step_sets(plan: EpochPlan) -> list[list[int]]:
    return [
        sorted({int(e) for w in range(plan.num_workers) for e in plan.step_examples(step, w)})
        for step in range(plan.num_steps)
    ]


@given(
    st.permutations(range(NUM)),
    st.sampled_from(TAILS),
    st.sampled_from(["equal", "free"]),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
)
def test_global_batches_are_slices_of_the_order_whoever_computes_them(
    order: list[int], tail: Tail, counts: Any, num_workers: int, padded: bool
) -> None:
    config = BalanceConfig(
        batch_size=8, num_workers=num_workers, counts=counts, tail=tail, padded=padded
    )
    batches = step_sets(plan_epoch(COSTS, config, order=order))
    assert batches[:3] == [sorted(order[b * 8 : b * 8 + 8]) for b in range(3)]
    last = {"drop": [], "wrap": [sorted(order[24:] + order[:2])]}
    assert batches[3:] == last.get(tail, [sorted(order[24:])])


def test_an_order_that_is_the_shuffle_gives_the_plan_of_the_shuffle() -> None:
    shuffle = np.random.default_rng([0, 3]).permutation(NUM)
    ours, plain = (plan_epoch(COSTS, CONFIG, epoch=3, order=o) for o in (shuffle, None))
    assert ours.examples.tolist() == plain.examples.tolist()
    assert ours.load.tolist() == plain.load.tolist()


@pytest.mark.parametrize(
    ("order", "changes", "others", "message"),
    [
        ([0] * NUM, {}, {}, "holds example 0 30 times"),
        (range(NUM - 1), {}, {}, "holds example 29 0 times"),
        ([*range(NUM - 1), NUM], {}, {}, r"order\[29\] is 30"),
        (np.zeros(NUM), {}, {}, "order must be a one-dimensional list"),
        (range(NUM), {"window": 2}, {}, "needs window=1, got 2"),
        (range(NUM), {"longest_first": True}, {}, "needs longest_first=False, got True"),
        (range(NUM), {}, {"remaining": range(8)}, "pass it or order, not both"),
        (range(NUM), {}, {"shards": Shards(np.arange(NUM) % 2, ((0,), (1,)))}, "shards bring"),
    ],
)
def test_what_is_no_order_or_undoes_it_is_refused(
    order: Any, changes: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_epoch(COSTS, replace(CONFIG, **changes), order=order, **others)


def test_a_planner_refuses_an_order_that_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="needs window=1, got 3"):
        EpochPlanner(COSTS, replace(CONFIG, window=3), order=halve_and_herd(NUM))
    with pytest.raises(ValueError, match="the order is of 3 examples, and there are 30 costs"):
        planner_of(halve_and_herd(3))


def test_an_order_that_learns_is_known_when_its_epoch_begins() -> None:
    planner = planner_of(halve_and_herd(NUM))
    assert (planner.knows(0), planner.knows(1)) == (True, False)
    planner.plan_ahead(start(epoch=1))
    with pytest.raises(ValueError, match=r"epoch 1 has no order yet.*call set_epoch\(1\) first"):
        planner.plan(start(epoch=1))
    planner.begin_epoch(1)
    assert planner.plan(start(epoch=1)).num_steps == 4
    with pytest.raises(ValueError, match="stands at epoch 1 and cannot go back to 0"):
        planner.begin_epoch(0)


def test_an_order_that_learns_nothing_knows_all_epochs() -> None:
    order = stratified(np.arange(NUM) % 3)
    planner = planner_of(order)
    planner.plan_ahead(start(epoch=2))
    planner.begin_epoch(2)
    planner.begin_epoch(0)
    for epoch in (2, 0):
        batches = step_sets(planner.plan(start(epoch=epoch)))
        assert batches[0] == sorted(order.order(epoch)[:8].tolist())


@pytest.mark.parametrize("num_workers", [2, 4, 1])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_a_state_holds_the_order_as_json(num_workers: int, num_steps: int) -> None:
    saved = planner_of(learnt())
    state = json.loads(json.dumps(saved.state_dict(replace(start(epoch=1), num_steps=num_steps))))
    fresh = planner_of(halve_and_herd(NUM), num_workers)
    cursor = fresh.load_state_dict(state)
    rest = step_sets(fresh.plan(cursor))[cursor.num_steps :]
    assert rest == step_sets(saved.plan(start(epoch=1)))[num_steps:]
    for planner in (saved, fresh):
        planner.begin_epoch(2)
    assert fresh.order is not None
    assert saved.order is not None
    assert fresh.order.order(2).tolist() == saved.order.order(2).tolist()


def test_a_state_saved_between_epochs_ends_the_epoch_where_it_is_loaded() -> None:
    saved, fresh = planner_of(learnt()), planner_of(halve_and_herd(NUM))
    cursor = fresh.load_state_dict(saved.state_dict(start(epoch=2)))
    saved.begin_epoch(2)
    assert fresh.plan(cursor).examples.tolist() == saved.plan(cursor).examples.tolist()


def test_a_loaded_order_replaces_what_was_planned() -> None:
    planner = planner_of(halve_and_herd(NUM))
    planner.begin_epoch(1)
    before = planner.plan(start(epoch=1)).examples.tolist()
    planner.load_state_dict(planner_of(learnt()).state_dict(start(epoch=1)))
    after = planner.plan(start(epoch=1)).examples.tolist()
    assert after == planner_of(learnt()).plan(start(epoch=1)).examples.tolist() != before


def damaged(state: dict[str, Any], how: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(state))
    array = found["order"]["learnt"]["rows"]
    if how == "text":
        array["base64"] = "?"
    elif how == "type":
        array["dtype"] = "|O"
    elif how == "shape":
        array["shape"] = [7, -3]
    elif how == "epoch":
        found["order"]["epoch"] = 5
    elif how == "plan":
        found["segments"][0]["plan"] = "0" * 32
    return found


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("text", "the state is damaged: an array of its order"),
        ("type", "the state is damaged: an array of its order"),
        ("shape", "the state is damaged: an array of its order"),
        ("epoch", "its order is past epoch 1, at 5"),
        ("plan", "comes out other than the one that was saved"),
    ],
)
def test_a_damaged_state_changes_nothing(how: str, message: str) -> None:
    state = planner_of(learnt()).state_dict(replace(start(epoch=1), num_steps=2))
    present = planner_of(halve_and_herd(NUM))
    before = present.state_dict(start()), present.plan(start()).examples.tolist()
    with pytest.raises(StateMismatchError, match=message):
        present.load_state_dict(damaged(state, how))
    assert (present.state_dict(start()), present.plan(start()).examples.tolist()) == before


@pytest.mark.parametrize(
    ("saved", "present", "message"),
    [
        (None, halve_and_herd(NUM), "saved without an order of its own, and this run has 'halve"),
        (halve_and_herd(NUM), None, "saved with an order of its own, and this run has plain"),
        (halve_and_herd(NUM), pair_balance(NUM), "policy 'halve-and-herd'"),
        (halve_and_herd(NUM), halve_and_herd(NUM, seed=1), "seed 0"),
    ],
)
def test_a_state_of_another_order_is_refused(
    saved: ExampleOrder | None, present: ExampleOrder | None, message: str
) -> None:
    state = planner_of(saved).state_dict(start())
    with pytest.raises(StateMismatchError, match=message):
        planner_of(present).load_state_dict(state)


@given(
    st.lists(st.integers(0, 50), min_size=12, max_size=60),
    st.sampled_from(TAILS),
    st.sampled_from(["equal", "free"]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
)
def test_the_delivery_at_once_is_what_workers_receive_one_by_one(
    sizes: list[int], tail: Tail, counts: Any, num_workers: int, num_microbatches: int
) -> None:
    config = BalanceConfig(
        batch_size=12,
        num_workers=num_workers,
        counts=counts,
        tail=tail,
        num_microbatches=num_microbatches,
    )
    plan = plan_epoch(sizes, config)
    batches = [list(micro_batches_of(plan, worker)) for worker in range(num_workers)]
    found = delivery_of(plan)
    columns = (found.examples, found.worker, found.loss_weight)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    for step in range(plan.num_steps):
        expected = [
            (example, worker, batch.loss_weight)
            for worker in range(num_workers)
            for batch in batches[worker]
            if batch.step == step
            for example in batch.examples.tolist()
        ]
        begin, end = found.step_offsets[[step, step + 1]]
        assert rows[begin:end] == expected
    assert found.step_offsets[-1] == len(rows)
