"""What holds for every order, learnt or not."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.order.conftest import LEARNING, POLICIES

from paceline import order
from paceline.errors import StateMismatchError
from paceline.order import EpochOrder, OrderPolicy, herding_bound

DIM = 11


def rows_of(num_examples: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((num_examples, DIM)) + 0.3).astype(np.float32)


def show(
    policy: OrderPolicy, rows: NDArray[np.float32], *, step: int = 7, num: int | None = None
) -> list[int]:
    """Let a policy see an epoch in steps, or its beginning, and end it; return its order."""
    examples = policy.order(policy.epoch)[:num]
    for first in range(0, len(examples), step):
        ids = examples[first : first + step]
        policy.observe(ids, rows[ids])
    policy.end_epoch()
    return policy.order(policy.epoch).tolist()


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("num_examples", [1, 2, 3, 5, 16, 37, 600])
def test_every_epoch_has_each_example_once(name: str, num_examples: int) -> None:
    policy = POLICIES[name](num_examples, 3)
    rows = rows_of(num_examples)
    assert policy.num_examples == num_examples
    for num in (None, num_examples // 2, 1, 0, None):
        again = policy.order(policy.epoch)
        assert again.dtype == np.int64
        assert sorted(show(policy, rows, num=num)) == list(range(num_examples))
        assert sorted(again.tolist()) == list(range(num_examples))


@pytest.mark.parametrize("name", POLICIES)
def test_an_order_is_the_same_however_often_it_is_asked_for(name: str) -> None:
    policy = POLICIES[name](20, 1)
    rows = rows_of(20)
    first = policy.order(0)
    policy.observe(first[:5], rows[first[:5]])
    assert policy.order(0).tolist() == first.tolist()
    policy.order(0)[:] = 0
    assert policy.order(0).tolist() == first.tolist()


@pytest.mark.parametrize("name", POLICIES)
def test_the_length_of_the_steps_changes_nothing(name: str) -> None:
    rows = rows_of(53)
    several = [POLICIES[name](53, 2) for _ in range(3)]
    for _ in range(3):
        orders = [
            show(policy, rows, step=step) for policy, step in zip(several, (1, 8, 53), strict=True)
        ]
        assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("name", POLICIES)
def test_of_an_example_that_comes_again_the_first_row_counts(name: str) -> None:
    rows = rows_of(30)
    one, other = POLICIES[name](30, 0), POLICIES[name](30, 0)
    ids = one.order(0)
    one.observe(ids, rows[ids])
    twice = np.concatenate([ids[:9], ids[:9]])
    other.observe(twice, np.concatenate([rows[ids[:9]], -rows[ids[:9]]]))
    other.observe(ids[:20], np.concatenate([-rows[ids[:9]], rows[ids[9:20]]]))
    other.observe(ids[20:], rows[ids[20:]])
    for policy in (one, other):
        policy.end_epoch()
    assert one.order(1).tolist() == other.order(1).tolist()


@pytest.mark.parametrize("name", POLICIES)
def test_a_state_goes_on_at_every_step_also_for_other_workers(name: str) -> None:
    num_examples, step = 26, 4
    rows = rows_of(num_examples)
    straight = POLICIES[name](num_examples, 5)
    expected = [show(straight, rows, step=step) for _ in range(3)]
    policy = POLICIES[name](num_examples, 5)
    for epoch in range(3):
        examples = policy.order(epoch)
        for first in range(0, num_examples, step):
            ids = examples[first : first + step]
            policy.observe(ids, rows[ids])
            saved = policy.state_dict()
            kept = plain(saved)
            policy = of_other_workers(name, num_examples)
            policy.load_state_dict(saved)
            assert plain(saved) == kept
            assert policy.order(epoch).tolist() == examples.tolist()
        policy.end_epoch()
        assert policy.order(epoch + 1).tolist() == expected[epoch]


def of_other_workers(name: str, num_examples: int) -> OrderPolicy:
    lanes = {
        "i-b": order.independent_mean_balance,
        "i-pb": order.independent_pair_balance,
        "d-grab": order.coordinated_pair_balance,
    }
    if name in lanes:
        return lanes[name](num_examples, 2, seed=5)
    return POLICIES[name](num_examples, 5)


def plain(state: dict[str, Any]) -> str:
    return json.dumps(state, default=lambda value: value.tolist())


@pytest.mark.parametrize("name", POLICIES)
def test_a_state_is_a_copy(name: str) -> None:
    rows = rows_of(20)
    policy = POLICIES[name](20, 0)
    ids = policy.order(0)
    policy.observe(ids[:6], rows[ids[:6]])
    saved = policy.state_dict()
    kept = plain(saved)
    policy.observe(ids[6:], rows[ids[6:]])
    policy.end_epoch()
    assert plain(saved) == kept


@pytest.mark.parametrize("name", LEARNING)
def test_bytes_with_scales_are_as_good_as_floats(name: str) -> None:
    rng = np.random.default_rng(1)
    stored = rng.integers(-127, 128, (40, DIM)).astype(np.int8)
    stored[:, 0] = 127  # So that storing it again is exact.
    scales = 2.0 ** rng.integers(-3, 3, 40)
    one, other = POLICIES[name](40, 0), POLICIES[name](40, 0)
    ids = one.order(0)
    one.observe(ids, stored[ids], scales[ids])
    other.observe(ids, (stored * scales[:, None]).astype(np.float32)[ids])
    for policy in (one, other):
        policy.end_epoch()
    assert one.order(1).tolist() == other.order(1).tolist()


@pytest.mark.parametrize("name", LEARNING)
def test_learning_lowers_the_herding_bound(name: str) -> None:
    rows = rows_of(1200)
    policy = POLICIES[name](1200, 0)
    first = herding_bound(rows, policy.order(0), batch_size=3).per_step
    for _ in range(3):
        newest = show(policy, rows, step=100)
    assert herding_bound(rows, newest, batch_size=3).per_step < 0.8 * first


@pytest.mark.parametrize("name", LEARNING)
def test_who_learns_knows_the_epoch_under_way_only(name: str) -> None:
    policy = POLICIES[name](6, 0)
    policy.end_epoch()
    for epoch in (0, 2, -1):
        with pytest.raises(ValueError, match=f"knows epoch 1 only, not {epoch}"):
            policy.order(epoch)
    assert sorted(policy.order(1).tolist()) == list(range(6))


BAD = [
    ({"example_ids": [0, 6]}, r"must lie in \[0, 6\), but example_ids\[1\] is 6"),
    ({"example_ids": [-1, 0]}, r"example_ids\[0\] is -1"),
    ({"example_ids": [0.0, 1.0]}, "must be a list of whole numbers"),
    ({"example_ids": [[0, 1]]}, "must be a list of whole numbers"),
    ({"example_ids": [0]}, r"rows must have shape \(1, dim\)"),
    ({"rows": np.zeros(2)}, r"rows must have shape \(2, dim\), one per example id, got \(2,\)"),
    ({"rows": np.zeros((2, 0))}, "rows must have shape"),
    ({"scales": [1.0]}, r"scales must have shape \(2,\)"),
    ({"scales": [1.0, np.nan]}, "that of example 1 is not"),
    ({"rows": [[0.0] * DIM, [np.inf] * DIM]}, r"that of example 1 is not \(1 of 2\)"),
    ({"rows": [[np.inf, -np.inf] + [0.0] * 9, [0.0] * DIM]}, "that of example 0 is not"),
]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("changed", "message"), BAD)
def test_a_bad_observation_is_refused_and_nothing_is_learnt(
    name: str, changed: dict[str, Any], message: str
) -> None:
    policy = POLICIES[name](6, 0)
    good: dict[str, Any] = {"example_ids": [0, 1], "rows": np.ones((2, DIM)), "scales": None}
    for _ in range(2):
        before = plain(policy.state_dict())
        with pytest.raises(ValueError, match=message):
            policy.observe(**{**good, **changed})
        assert plain(policy.state_dict()) == before
        policy.observe(**good)


@pytest.mark.parametrize("name", LEARNING)
def test_rows_of_another_width_are_refused(name: str) -> None:
    policy = POLICIES[name](6, 0)
    policy.observe([0], np.ones((1, 3)))
    with pytest.raises(ValueError, match="rows must have 3 columns as before, got 4"):
        policy.observe([1], np.ones((1, 4)))


@pytest.mark.parametrize("name", POLICIES)
def test_an_empty_observation_is_fine(name: str) -> None:
    policy = POLICIES[name](6, 0)
    policy.observe([], np.zeros((0, DIM)))
    policy.end_epoch()
    assert sorted(policy.order(1).tolist()) == list(range(6))


@pytest.mark.parametrize("name", POLICIES)
def test_a_state_of_something_else_is_refused_and_loads_nothing(name: str) -> None:
    policy = POLICIES[name](12, 0)
    show(policy, rows_of(12))
    state = policy.state_dict()
    others: list[tuple[dict[str, Any], str]] = [
        ({}, "this is no state of an order"),
        ({**state, "version": 9}, "version 9, and this order has 1"),
        ({**state, "policy": "another"}, "policy 'another'"),
        ({**state, "num_examples": 13}, "num_examples 13"),
        ({**state, "seed": 1}, "seed 1"),
        ({**state, "epoch": -1}, "'epoch' is -1"),
        ({**state, "epoch": True}, "'epoch' is True"),
        ({**state, "epoch": None}, "'epoch' is None"),
    ]
    if policy.needs_rows:
        learnt = state["learnt"]
        others += [
            ({**state, "order": np.zeros(12, dtype=np.int64)}, "does not hold each example once"),
            ({**state, "order": np.arange(11)}, "'order' must have shape"),
            ({**state, "learnt": None}, "'learnt' is None"),
            ({**state, "learnt": {}}, "is damaged"),
            ({**state, "learnt": {k: v[:-1] for k, v in learnt.items()}}, "must have shape"),
            ({**state, "dim": 4}, "must have shape"),
        ]
    before = plain(policy.state_dict())
    for bad, message in others:
        with pytest.raises(StateMismatchError, match=message):
            policy.load_state_dict(bad)
        assert plain(policy.state_dict()) == before


@pytest.mark.parametrize("name", POLICIES)
def test_the_seed_tells_orders_apart(name: str) -> None:
    assert POLICIES[name](50, 0).order(0).tolist() != POLICIES[name](50, 1).order(0).tolist()
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        POLICIES[name](50, -1)
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        POLICIES[name](0, 0)


@given(
    name=st.sampled_from(list(POLICIES)),
    num_examples=st.integers(1, 40),
    lengths=st.lists(st.integers(0, 40), max_size=4),
    step=st.integers(1, 9),
    seed=st.integers(0, 3),
    flat=st.booleans(),
)
def test_whatever_is_observed_orders_are_orders(
    name: str, num_examples: int, lengths: list[int], step: int, seed: int, flat: bool
) -> None:
    policy = POLICIES[name](num_examples, seed)
    rows = np.zeros((num_examples, DIM), np.float32) if flat else rows_of(num_examples, seed)
    for num in lengths:
        assert sorted(show(policy, rows, step=step, num=num)) == list(range(num_examples))


def test_every_policy_is_an_epoch_order() -> None:
    orders: list[EpochOrder] = [make(3, 0) for make in POLICIES.values()]
    names = {policy.name for policy in orders if isinstance(policy, OrderPolicy)}
    assert names == set(POLICIES)
