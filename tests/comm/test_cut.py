"""Cutting long blocks: the same bytes in the same order, in blocks of a bounded length."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.comm import BlockPlan, WireProblem, cut_blocks, plan_dear, plan_prophet
from paceline.comm._cut import _snapped
from paceline.cost import Link


def problem_of(
    num_bytes: list[float], *, num_in_flight: int, block_cost_s: float = 1e-3
) -> WireProblem:
    num_tensors = len(num_bytes)
    return WireProblem(
        forward_s=np.full(num_tensors, 0.1),
        layer=np.arange(num_tensors),
        num_bytes=np.array(num_bytes),
        ready_s=0.2 * np.arange(num_tensors, 0, -1),
        backward_s=0.2 * num_tensors,
        link=Link(0.0, 1e6),
        num_in_flight=num_in_flight,
        block_cost_s=block_cost_s,
    )


def longest_bytes(problem: WireProblem) -> float:
    """Where what is lost to the others in flight is what launching the blocks costs."""
    payload = problem.num_bytes.sum() * problem.block_cost_s * problem.link.bytes_per_s
    return float(np.sqrt(payload / (problem.num_in_flight - 1)))


def merged(plan: BlockPlan) -> list[tuple[int, float, float]]:
    """List what is sent as (tensor, first byte, end), stretches that follow each other as one."""
    found: list[tuple[int, float, float]] = []
    for tensor, first, length in zip(plan.tensor, plan.first_byte, plan.num_bytes, strict=True):
        if found and found[-1][0] == tensor and found[-1][2] == pytest.approx(first, abs=1e-6):
            first, length = found[-1][1], found[-1][2] + length - found[-1][1]
            found.pop()
        found.append((int(tensor), float(first), float(first + length)))
    return found


@given(
    num_bytes=st.lists(st.integers(1, 1_000_000).map(float), min_size=1, max_size=12),
    blocks=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    num_in_flight=st.integers(2, 6),
)
def test_the_same_bytes_are_sent_in_the_same_order_in_short_blocks(
    num_bytes: list[float], blocks: list[int], num_in_flight: int
) -> None:
    problem = problem_of(num_bytes, num_in_flight=num_in_flight)
    block = np.unique(np.sort(blocks[: len(num_bytes)]), return_inverse=True)[1]
    order = np.arange(len(num_bytes))[::-1]
    plan = BlockPlan.from_parts("any", problem, order, problem.num_bytes[order], block)
    cut = cut_blocks(problem, plan)
    assert merged(cut) == [
        (tensor, pytest.approx(first, abs=1e-6), pytest.approx(end, rel=1e-9))
        for tensor, first, end in merged(plan)
    ]
    assert (np.diff(cut.block) >= 0).all()
    assert set(cut.block) == set(range(cut.num_blocks))
    # Cuts less than a byte from a tensor's end move there.
    assert cut.block_bytes.max() <= max(longest_bytes(problem), 1.0) + 2
    assert (cut.num_bytes > 0).all()


def test_no_block_of_the_plan_is_joined_with_the_next() -> None:
    problem = problem_of([3e4, 7e4, 5e4], num_in_flight=3)
    plan = BlockPlan.from_parts("any", problem, [2, 1, 0], problem.num_bytes[::-1], [0, 0, 1])
    cut = cut_blocks(problem, plan)
    most = longest_bytes(problem)
    assert cut.num_blocks == int(np.ceil(12e4 / most) + np.ceil(3e4 / most))
    assert len(set(cut.block[cut.tensor == 0]) & set(cut.block[cut.tensor != 0])) == 0


@pytest.mark.parametrize(
    "change",
    [{"num_in_flight": 1}, {"block_cost_s": 0.0}, {"block_cost_s": 1e3}],
    ids=["one in flight", "blocks cost nothing", "blocks cost too much"],
)
def test_where_nothing_is_won_the_plan_is_the_same_object(change: dict[str, float]) -> None:
    problem = replace(problem_of([1e6, 1e6], num_in_flight=2), **change)
    plan = plan_prophet(problem)
    assert cut_blocks(problem, plan) is plan


def test_a_plan_of_halves_is_left_as_it_is() -> None:
    problem = problem_of([1e6, 1e6], num_in_flight=2)
    plan = plan_dear(problem)
    assert cut_blocks(problem, plan) is plan


@pytest.mark.parametrize(
    ("cut", "snapped"),
    [
        ([1.9, 5.0], [1.9, 5.0]),
        ([2.0, 5.0], [2.0, 5.0]),
        ([2.5, 5.0], [3.0, 5.0]),
        ([3.5, 5.0], [3.0, 5.0]),
        ([4.0, 5.0], [4.0, 5.0]),
        ([4.5, 5.0], [5.0]),
    ],
)
def test_a_cut_less_than_a_byte_from_the_end_of_a_part_moves_there(
    cut: list[float], snapped: list[float]
) -> None:
    assert _snapped(np.array(cut), np.array([3.0, 5.0])).tolist() == snapped
