"""Plans do not change by accident: a saved run names the digest of the plan that it resumes.

A digest that differs here means that runs saved before the change cannot be resumed after it. Then
say so in the changelog, and put the new digests in.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from paceline._compile import _Kernel
from paceline.balance import BalanceConfig, Limits, Shards, plan_epoch
from paceline.comm import (
    WireProblem,
    cut_blocks,
    plan_blocks,
    plan_bytescheduler,
    plan_ddp,
    plan_dear,
    plan_merged,
    plan_p3,
    plan_prophet,
    plan_wait_free,
)
from paceline.cost import Link, Worker
from paceline.order import gaussian_unit_rows, order_policies


def digest_of(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


SIZES = np.random.default_rng(0).lognormal(5.0, 1.1, 2000).round() + 8
EXAMPLE_COSTS = 6144.0 * SIZES + SIZES**2
SLOW = (Worker(), Worker(speed=0.5), Worker(overhead_s=1e6), Worker())
BALANCE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "equal": ({}, {}, "a863692f46cb"),
    "free": ({"counts": "free"}, {}, "7033f253b6cf"),
    "free, slow workers": ({"counts": "free"}, {"workers": SLOW}, "6d936237723f"),
    "window": ({"window": 4}, {"epoch": 2}, "51746c75d247"),
    "epoch window": ({"window": 10**6, "seed": 3}, {}, "5fc272941cba"),
    "micro-batches": ({"num_microbatches": 3}, {}, "ef67faffc2cb"),
    "limits": (
        {"limits": Limits(max_tokens=6000.0, max_examples=9)},
        {"sizes": SIZES},
        "20a0856ae34d",
    ),
    "padded": ({"padded": True}, {}, "f80813c3dc70"),
    "padded, free": ({"padded": True, "counts": "free"}, {"workers": SLOW}, "222de9754bd4"),
    "padded, window": ({"padded": True, "counts": "free", "window": 8}, {}, "e3424b8dff6d"),
    "padded, micro-batches": ({"padded": True, "num_microbatches": 2}, {}, "f92f401ec585"),
    "padded, cut to cost": (
        {"padded": True, "counts": "free", "num_microbatches": "auto"},
        {},
        "4430654d4e5d",
    ),
    "padded, cut to cost, slow workers": (
        {"padded": True, "counts": "free", "num_microbatches": "auto"},
        {"workers": SLOW},
        "545511cd1a49",
    ),
    "padded, shares cut to cost": (
        {"padded": True, "num_microbatches": "auto"},
        {},
        "e9158da7f7e2",
    ),
    "pad": ({"tail": "pad", "longest_first": True}, {}, "97275b994391"),
    "wrap": ({"tail": "wrap"}, {"remaining": np.arange(500)}, "076ea2cc503c"),
    "shards": (
        {"counts": "free", "tail": "drop"},
        {"shards": Shards(np.arange(2000) % 5, ((0,), (1,), (2,), (3,), (0, 2)))},
        "8d3c221013e8",
    ),
}


@pytest.fixture(params=["compiled", "interpreted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small plans are interpreted, large ones compiled; a test with this fixture runs both ways."""

    def call(kernel: Any, *args: Any) -> Any:
        if kernel._most_values > 0 and request.param == "interpreted":
            return kernel._interpret(*args)
        return as_before(kernel, *args)

    as_before = _Kernel.__call__
    monkeypatch.setattr(_Kernel, "__call__", call)
    monkeypatch.setattr(_Kernel, "_is_small", lambda *_: False)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", BALANCE)
def test_epochs(name: str) -> None:
    settings, others, expected = BALANCE[name]
    config = BalanceConfig(**{"batch_size": 64, "num_workers": 4, **settings})
    plan = plan_epoch(EXAMPLE_COSTS, config, **others)
    found = digest_of(plan.examples, plan.is_repeat, plan.micro_offsets, plan.step_offsets)
    assert found == expected


def test_plans_do_not_depend_on_how_many_slots_are_arranged_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paceline.balance._plan.BLOCK_SLOTS", 200)  # Three steps of most.
    for name in BALANCE:
        test_epochs(name)


def problem_of(num_tensors: int, wire_over_compute: float, seed: int = 0) -> WireProblem:
    rng = np.random.default_rng(seed)
    num_bytes = rng.lognormal(13.0, 1.5, num_tensors).round()
    backward_s = rng.random(num_tensors) * 4e-3
    return WireProblem(
        forward_s=backward_s / 2,
        layer=np.arange(num_tensors),
        num_bytes=num_bytes,
        ready_s=np.cumsum(backward_s[::-1])[::-1].copy(),
        backward_s=float(backward_s.sum()),
        link=Link(
            alpha_s=2e-4,
            bytes_per_s=float(num_bytes.sum() / (1.5 * backward_s.sum() * wire_over_compute)),
        ),
        num_in_flight=2,
        block_cost_s=5e-5,
    )


PLANNERS: dict[str, tuple[Callable[[WireProblem], Any], str]] = {
    "ddp": (plan_ddp, "f7e5a9e4d00e"),
    "wait-free": (plan_wait_free, "36a56afb47a1"),
    "mg-wfbp": (plan_merged, "a5bef88cad67"),
    "p3": (plan_p3, "ad9333c17936"),
    "bytescheduler": (
        lambda problem: plan_bytescheduler(problem, partition_bytes=1e6),
        "d614e51b0aa4",
    ),
    "prophet": (plan_prophet, "8266d205fb6b"),
    "dear": (plan_dear, "a9e49639af0e"),
    "paceline": (plan_blocks, "0f7cd4b999c0"),
    "cut": (lambda problem: cut_blocks(problem, plan_ddp(problem)), "33c51d5c8de0"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", PLANNERS)
def test_blocks(name: str) -> None:
    planner, expected = PLANNERS[name]
    shapes = ((12, 0.5), (40, 1.0), (25, 2.0), (1, 1.0))
    plans = [planner(problem_of(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    found = digest_of(*(a for p in plans for a in (p.tensor, p.first_byte, p.num_bytes, p.block)))
    assert found == expected


ORDERS = {
    "random-reshuffling": "aefe59224048",
    "shuffle-once": "a330cf7a0e54",
    "flip-flop": "11f08eb0f21e",
    "grab": "c96ad7cd59e8",
    "pair-balance": "8577d7bb210a",
    "i-b": "a88405c51074",
    "i-pb": "d3c6a8fa2d91",
    "d-grab": "c7b1b90fdc89",
    "recursive-mean-balance": "f9ae79f69749",
    "recursive-pair-balance": "2d2275c2486a",
    "self-balancing-walk": "7c6f00f47d7a",
    "windowed-greedy": "fc3aa161a11d",
    "halve-and-herd": "358715085742",
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders(name: str) -> None:
    rows = gaussian_unit_rows(24, 150, 4, seed=1)
    policy = order_policies()[name](len(rows), 4, 5)
    orders = []
    for epoch in range(4):
        order = policy.order(epoch)
        orders.append(order)
        if policy.needs_rows:
            for step in range(0, len(rows), 40):
                policy.observe(order[step : step + 40], rows[order[step : step + 40]])
        policy.end_epoch()
    assert digest_of(*orders) == ORDERS[name]
