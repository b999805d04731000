from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.order.test_policies import rows_of, show

from paceline import order
from paceline.order import Herding, gaussian_unit_rows, herding_bound, simulate_herding
from paceline.order._descent import leaf_rank
from paceline.order._herded import _depth
from paceline.order._rows import dot, pack
from paceline.order._stored import halve, herd, stored_mean


@given(num=st.integers(1, 20), dim=st.integers(1, 5), batch_size=st.integers(1, 6))
def test_the_bound_is_the_largest_prefix(num: int, dim: int, batch_size: int) -> None:
    rng = np.random.default_rng(num)
    rows = rng.standard_normal((num, dim)).astype(np.float32)
    ids = rng.permutation(num)
    prefix = np.abs(np.cumsum((rows - rows.mean(axis=0, dtype=np.float64))[ids], axis=0))
    found = herding_bound(rows, ids, batch_size=batch_size)
    assert found.per_example == pytest.approx(prefix.max(), abs=1e-9)
    steps = prefix[batch_size - 1 :: batch_size]
    assert found.per_step == pytest.approx(steps.max() if steps.size else 0.0, abs=1e-9)


def test_a_step_is_one_example_unless_told() -> None:
    rows = np.array([[1.0], [-1.0]], np.float32)
    assert herding_bound(rows, [0, 1]) == Herding(per_step=1.0, per_example=1.0)
    assert herding_bound(rows, [0, 1], batch_size=2) == Herding(per_step=0.0, per_example=1.0)


def test_the_bound_needs_rows_and_steps_that_fit() -> None:
    with pytest.raises(ValueError, match=r"the 3 examples that have rows, got shape \(2,\)"):
        herding_bound(np.zeros((3, 2), np.float32), [0, 1])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        herding_bound(np.zeros((3, 2), np.float32), [0, 1, 2], batch_size=0)


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 9, 16, 65, 100, 1000])
def test_products_are_those_of_numpy(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((5, dim)).astype(np.float32)
    one = rng.standard_normal(dim).astype(np.float32)
    expected = rows.astype(np.float64) @ one
    room = np.empty(dim, np.float32)
    assert [dot(row, one, room) for row in rows] == pytest.approx(expected, abs=1e-4)


def test_what_is_stored_is_within_half_a_step() -> None:
    rows = rows_of(6)
    rows[2] = 0.0
    stored, scales = np.zeros(rows.shape, np.int8), np.zeros(6, np.float32)
    pack(rows, np.arange(6), stored, scales)
    error = np.abs(stored * scales[:, None] - rows).max(axis=1)
    assert (error <= 0.501 * scales).all()
    mean = stored_mean(stored, scales, np.arange(6))
    assert mean == pytest.approx((stored * scales[:, None]).mean(axis=0), abs=1e-6)


def stored_rows(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = rows_of(num)
    stored, scales = np.zeros(rows.shape, np.int8), np.zeros(num, np.float32)
    pack(rows, np.arange(num), stored, scales)
    mean = stored_mean(stored, scales, np.arange(num))
    return stored, scales, mean, (stored * scales[:, None] - mean).astype(np.float64)


@pytest.mark.parametrize(("num", "depth"), [(64, 1), (600, 3), (1300, 5), (7, 3), (1, 1)])
def test_halving_is_recursive_mean_balance_of_stored_rows(num: int, depth: int) -> None:
    stored, scales, mean, centred = stored_rows(num)
    shuffle = order.random_reshuffling(num).order(0)
    policy = order.recursive_mean_balance(num, depth=depth)
    newest = show(policy, centred.astype(np.float32))
    assert halve(stored, scales, mean, shuffle, depth).tolist() == newest


@pytest.mark.parametrize(("together", "window"), [(1, 1), (1, 4), (3, 7), (4, 50), (50, 90)])
def test_herding_takes_the_lowest_products_of_its_window(together: int, window: int) -> None:
    num = 50
    stored, scales, mean, centred = stored_rows(num)
    ids = np.random.default_rng(1).permutation(num)
    herded = herd(stored, scales, mean, ids, window, together).tolist()
    waiting, following, total = ids[:window].tolist(), ids[window:].tolist(), np.zeros(mean.shape)
    for first in range(0, num, together):
        step = herded[first : first + together]
        products = {example: centred[example] @ total for example in waiting}
        for example in step:
            assert products[example] <= min(products.values()) + 1e-3
            del products[example]
        total += centred[step].sum(axis=0)
        waiting = list(products) + following[:together]
        following = following[together:]


def test_rows_may_be_as_long_as_they_like() -> None:
    stored = np.full((3, 20_000), 127, dtype=np.int8)
    stored[1] = -127
    scales = np.array([1e30, 1e30, 1e-30], dtype=np.float32)
    mean = np.zeros(20_000, np.float32)
    assert herd(stored, scales, mean, np.array([0, 2, 1]), 3, 1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_direction_that_all_have_in_common_is_not_overshot(batch_size: int) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((3000, 40)) * 0.05
    rows[:, 0] += rng.standard_normal(3000)
    bounds = {}
    for policy in (order.halve_and_herd(3000), order.coordinated_pair_balance(3000, batch_size)):
        run = simulate_herding(policy, rows.astype(np.float32), batch_size=batch_size, num_rounds=4)
        bounds[policy.name] = [bound.per_step for bound in run.bounds]
    assert max(bounds["halve-and-herd"][1:]) < bounds["d-grab"][2]


@pytest.mark.parametrize(
    ("num_examples", "depth"),
    [(1, 0), (640, 0), (641, 1), (1280, 1), (1281, 2), (640 * 1024, 10), (10**9, 10)],
)
def test_halving_stops_at_parts_of_two_windows(num_examples: int, depth: int) -> None:
    assert _depth(num_examples) == depth


@pytest.mark.parametrize(
    ("depth", "node", "rank"),
    [
        (1, [0, 1, 2, 3], [-1, 0, 0, 1]),
        (2, [4, 5, 6, 7], [0, 1, 3, 2]),
        (2, [0, 1, 2, 3], [-1, 0, 0, 3]),
        (3, range(8, 16), [0, 1, 3, 2, 7, 6, 4, 5]),
    ],
)
def test_each_minus_turns_the_leaves_below_it(
    depth: int, node: Sequence[int], rank: list[int]
) -> None:
    assert leaf_rank(np.array(node), depth).tolist() == rank


def test_who_is_unknown_keeps_the_place_that_the_shuffle_gave() -> None:
    rows = rows_of(40)
    policy = order.halve_and_herd(40, seed=9)
    seen = policy.order(0)[:25]
    newest = np.array(show(policy, rows, num=25))
    shuffle = order.random_reshuffling(40, seed=9).order(1)
    unknown = ~np.isin(shuffle, seen)
    assert newest[unknown].tolist() == shuffle[unknown].tolist()


def test_without_new_rows_there_is_still_a_new_order() -> None:
    rows = rows_of(400)
    policy = order.halve_and_herd(400)
    newest = [show(policy, rows)]
    for _ in range(2):
        policy.end_epoch()
        newest.append(policy.order(policy.epoch).tolist())
    first, second, third = newest
    assert first != second != third
    chance = herding_bound(rows, order.random_reshuffling(400).order(3), batch_size=4).per_step
    assert herding_bound(rows, third, batch_size=4).per_step < 0.5 * chance


def test_a_distributed_order_is_under_the_centralised_floor_in_one_round() -> None:
    dim, num_examples, num_workers = 100, 400, 8
    rows = gaussian_unit_rows(dim, num_examples, num_workers, seed=2)
    num = len(rows)

    def bounds(policy: order.OrderPolicy, num_rounds: int) -> list[float]:
        run = simulate_herding(policy, rows, batch_size=num_workers, num_rounds=num_rounds)
        assert len(run.bounds) == num_rounds + 1 == len(run.pass_cpu_s) + 1
        return [bound.per_step for bound in run.bounds]

    floor = min(bounds(order.mean_balance(num), 12))
    assert max(bounds(order.halve_and_herd(num), 2)[1:]) < floor


def test_rows_are_of_equal_length_and_centred_per_worker() -> None:
    rows = gaussian_unit_rows(50, 300, 4, seed=1)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(1200), abs=0.1)
    for worker in range(4):
        assert np.abs(rows[worker::4].sum(axis=0)).max() < 1e-4
    assert (gaussian_unit_rows(50, 300, 4, seed=1) == rows).all()


@pytest.mark.parametrize("name", ["dim", "num_examples", "num_workers"])
def test_rows_need_sizes(name: str) -> None:
    sizes = {"dim": 2, "num_examples": 2, "num_workers": 2, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        gaussian_unit_rows(**sizes)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        order.windowed_greedy(10, window=0)


def test_d_grab_is_that_of_its_reference() -> None:
    """Against the published simulation's rule in 64 bits, by norms and without compiled loops."""
    num_examples, num_workers, dim = 60, 5, 40
    rows = np.random.RandomState(1).standard_normal((num_examples * num_workers, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    steps = rows.reshape(num_examples, num_workers, dim)
    steps -= steps.mean(axis=0)
    expected = [largest_sum(steps)]
    for _ in range(4):
        total, following = np.zeros(dim), np.empty_like(steps)
        for step, worker in np.ndindex(num_examples // 2, num_workers):
            one, other = steps[2 * step : 2 * step + 2, worker]
            if np.linalg.norm(total + one - other) > np.linalg.norm(total - one + other):
                one, other = other, one
            total += one - other
            following[step, worker], following[-1 - step, worker] = one, other
        steps = following
        expected.append(largest_sum(steps))
    policy = order.coordinated_pair_balance(num_examples * num_workers, num_workers)
    made = gaussian_unit_rows(dim, num_examples, num_workers, seed=1)
    run = simulate_herding(policy, made, batch_size=num_workers, num_rounds=4)
    assert [bound.per_step for bound in run.bounds] == pytest.approx(expected, abs=1e-4)


def largest_sum(steps: NDArray[np.float64]) -> float:
    return float(np.abs(np.cumsum(steps.sum(axis=1), axis=0)).max())
