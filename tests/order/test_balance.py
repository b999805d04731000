"""The GraB family against a few lines that follow the papers, example by example."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.order.test_policies import rows_of, show

from paceline import order
from paceline.errors import StateMismatchError
from paceline.order import OrderPolicy, herding_bound


def by_mean(rows: NDArray[np.float32], ids: list[int], mean: NDArray[np.float64]) -> list[int]:
    total, plus, minus = np.zeros(rows.shape[1]), [], []
    for example in ids:
        row = rows[example] - mean
        if np.linalg.norm(total + row) <= np.linalg.norm(total - row):
            total += row
            plus.append(example)
        else:
            total -= row
            minus.append(example)
    return plus + minus[::-1]


def by_pairs(
    rows: NDArray[np.float32], lanes: list[list[int]], *, is_shared: bool
) -> list[list[int]]:
    totals = [np.zeros(rows.shape[1]) for _ in lanes]
    plus: list[list[int]] = [[] for _ in lanes]
    minus: list[list[int]] = [[] for _ in lanes]
    for step in range(0, max(map(len, lanes)) - 1, 2):
        for j, lane in enumerate(lanes):
            total = totals[0 if is_shared else j]
            if step + 1 >= len(lane):
                continue
            one, other = lane[step], lane[step + 1]
            row = rows[one] - rows[other]
            if np.linalg.norm(total + row) <= np.linalg.norm(total - row):
                total += row
            else:
                total -= row
                one, other = other, one
            plus[j].append(one)
            minus[j].append(other)
    odd = [lane[len(lane) // 2 * 2 :] for lane in lanes]
    return [p + o + m[::-1] for p, o, m in zip(plus, odd, minus, strict=True)]


def lanes_of(ids: list[int], num_lanes: int) -> list[list[int]]:
    return [ids[lane::num_lanes] for lane in range(num_lanes)]


def joined(lanes: list[list[int]]) -> list[int]:
    ids = np.empty(sum(map(len, lanes)), dtype=np.int64)
    for j, lane in enumerate(lanes):
        ids[j :: len(lanes)] = lane
    return ids.tolist()


SIZES = [(40, 4), (48, 3), (41, 4), (10, 3), (3, 4)]


def test_grab_takes_off_the_mean_of_the_epoch_before() -> None:
    rows = rows_of(41)
    policy = order.mean_balance(41)
    mean, ids = np.zeros(rows.shape[1]), policy.order(0).tolist()
    for _ in range(4):
        ids = by_mean(rows, ids, mean)
        assert show(policy, rows) == ids
        mean = rows.mean(axis=0, dtype=np.float64)


@pytest.mark.parametrize(("num_examples", "num_workers"), SIZES)
def test_independent_means_are_one_grab_per_worker(num_examples: int, num_workers: int) -> None:
    rows = rows_of(num_examples)
    policy = order.independent_mean_balance(num_examples, num_workers)
    lanes = lanes_of(policy.order(0).tolist(), num_workers)
    means = [np.zeros(rows.shape[1]) for _ in lanes]
    for _ in range(3):
        lanes = [by_mean(rows, lane, mean) for lane, mean in zip(lanes, means, strict=True)]
        assert show(policy, rows) == joined(lanes)
        means = [rows[lane].mean(axis=0) if lane else means[0] for lane in lanes]


@pytest.mark.parametrize(("num_examples", "num_workers"), SIZES)
@pytest.mark.parametrize("is_shared", [False, True])
def test_pairs_are_balanced_as_in_the_paper(
    num_examples: int, num_workers: int, is_shared: bool
) -> None:
    rows = rows_of(num_examples)
    made = order.coordinated_pair_balance if is_shared else order.independent_pair_balance
    policy = made(num_examples, num_workers)
    lanes = lanes_of(policy.order(0).tolist(), num_workers)
    for _ in range(4):
        lanes = by_pairs(rows, lanes, is_shared=is_shared)
        assert show(policy, rows) == joined(lanes)


def test_pair_balance_is_its_coordinated_kind_on_one_worker() -> None:
    rows = rows_of(33)
    one, other = order.pair_balance(33), order.coordinated_pair_balance(33, 1)
    for _ in range(3):
        assert show(one, rows) == show(other, rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (order.recursive_mean_balance(50, depth=1), order.mean_balance(50)),
        (order.recursive_pair_balance(50, depth=1), order.pair_balance(50)),
    ],
)
def test_one_level_of_recursion_is_none(one: OrderPolicy, other: OrderPolicy) -> None:
    rows = rows_of(50)
    for _ in range(3):
        assert show(one, rows) == show(other, rows)


def by_recursive_pairs(rows: NDArray[np.float32], ids: list[int], depth: int) -> list[int]:
    """Halve a list by pairs, then each half, and turn the second round."""
    if depth == 0 or not ids:
        return ids
    total, halves = np.zeros(rows.shape[1]), ([], [])  # type: tuple[NDArray, tuple[list, list]]
    for one, other in zip(ids[::2], ids[1::2], strict=False):
        row = rows[one] - rows[other]
        is_plus = np.linalg.norm(total + row) <= np.linalg.norm(total - row)
        total += row if is_plus else -row
        halves[0].append(one if is_plus else other)
        halves[1].append(other if is_plus else one)
    first, second = (by_recursive_pairs(rows, half, depth - 1) for half in halves)
    return first + second[::-1]


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_recursion_online_is_recursion_on_lists(depth: int) -> None:
    rows = rows_of(64)
    policy = order.recursive_pair_balance(64, depth=depth)
    ids = policy.order(0).tolist()
    for _ in range(3):
        ids = by_recursive_pairs(rows, ids, depth)
        assert show(policy, rows) == ids


def test_who_was_not_observed_comes_first_in_its_lane_and_keeps_its_place_in_the_queue() -> None:
    rows = rows_of(24)
    policy = order.coordinated_pair_balance(24, 4)
    before = np.array(policy.order(0)).reshape(6, 4)
    after = np.array(show(policy, rows, step=4, num=8)).reshape(6, 4)
    assert after[:4].tolist() == before[2:].tolist()
    assert np.sort(after[4:], axis=0).tolist() == np.sort(before[:2], axis=0).tolist()


def test_an_epoch_that_always_ends_early_leaves_no_one_out() -> None:
    rows = rows_of(30)
    policy = order.pair_balance(30)
    seen: set[int] = set()
    for _ in range(4):
        seen |= set(policy.order(policy.epoch)[:10].tolist())
        show(policy, rows, num=10)
    assert seen == set(range(30))


def test_an_epoch_without_observations_keeps_the_order() -> None:
    policy = order.coordinated_pair_balance(24, 4)
    learnt = show(policy, rows_of(24))
    policy.end_epoch()
    assert policy.order(2).tolist() == learnt


def test_the_walk_is_random_between_certain_ends() -> None:
    rows = np.zeros((400, 2), np.float32)
    rows[::2, 0] = 1.0
    policy = order.self_balancing_walk(400, seed=3)
    policy.observe(np.arange(400), rows)
    # A sum of one length makes the sign certain, so the sum stays within it.
    assert np.abs(policy.state_dict()["learnt"]["sums"]).max() <= 2.0
    policy.end_epoch()
    first_half = policy.order(1)[:200]
    assert 60 < (first_half % 2).sum() < 140


@pytest.mark.parametrize("make", [order.coordinated_pair_balance, order.independent_mean_balance])
def test_there_must_be_a_worker(make: Callable[[int, int], OrderPolicy]) -> None:
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        make(10, 0)


def test_there_must_be_a_level() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        order.recursive_mean_balance(10, depth=0)


def test_coordination_is_what_makes_workers_cancel() -> None:
    rows = order.gaussian_unit_rows(64, 300, 8, seed=4)
    bounds = {}
    for make in (order.coordinated_pair_balance, order.independent_pair_balance):
        policy = make(2400, 8)
        for _ in range(6):
            newest = show(policy, rows, step=8)
        bounds[make] = herding_bound(rows, newest, batch_size=8).per_step
    coordinated, independent = bounds.values()
    assert coordinated < 0.6 * independent


@pytest.mark.parametrize(
    ("key", "value"), [("node", 16), ("node", -1), ("waiting_id", 12), ("waiting_id", -2)]
)
def test_a_state_that_points_nowhere_is_refused(key: str, value: int) -> None:
    policy = order.recursive_pair_balance(12, depth=2)
    policy.observe([0], np.ones((1, 3)))
    state = policy.state_dict()
    state["learnt"][key].flat[0] = value
    with pytest.raises(StateMismatchError, match=f"'{key}' must lie in .*, but holds {value}"):
        policy.load_state_dict(state)
