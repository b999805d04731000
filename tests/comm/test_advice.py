"""Advice for people who keep PyTorch's own wrappers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.comm import WireProblem, advise_buckets, advise_fsdp, plan_ddp_cap, step_time_s
from paceline.cost import Link


def problem_of(
    num_bytes: list[float], *, alpha_s: float = 1e-3, bytes_per_s: float = 2e8
) -> WireProblem:
    count = len(num_bytes)
    sizes = np.array(num_bytes, dtype=np.float64)
    return WireProblem(
        forward_s=np.full(count, 0.01),
        layer=np.flatnonzero(sizes),
        num_bytes=sizes[sizes > 0],
        ready_s=0.02 * np.arange(count, 0, -1)[sizes > 0],
        backward_s=0.02 * count,
        link=Link(alpha_s, bytes_per_s),
    )


SIZES = st.lists(st.sampled_from([0.0, 1e5, 3e6, 4e7]), min_size=1, max_size=10).filter(any)
PROBLEMS = st.builds(
    problem_of,
    SIZES,
    alpha_s=st.sampled_from([0.0, 1e-3, 2e-2]),
    bytes_per_s=st.sampled_from([1e8, 1e9]),
)


@given(problem=PROBLEMS)
def test_the_advised_bucket_is_priced_as_simulated_and_never_worse(problem: WireProblem) -> None:
    advice = advise_buckets(problem)
    for cap, price_s in (
        (advice.bucket_cap_mb, advice.step_s),
        (25, advice.default_step_s),
    ):
        assert price_s == step_time_s(problem, plan_ddp_cap(problem, cap))
    assert advice.bound_s * (1 - 1e-9) <= advice.step_s <= advice.default_step_s
    assert advice.step_s <= min(advice.step_s_of_cap.values()) / 0.99


def test_the_default_stays_where_nothing_gains() -> None:
    advice = advise_buckets(problem_of([1e5] * 4, bytes_per_s=1e9))
    assert advice.bucket_cap_mb == 25
    assert str(advice).startswith("Keep bucket_cap_mb=25: simulated ")


def test_a_smaller_bucket_is_advised_where_it_overlaps() -> None:
    advice = advise_buckets(problem_of([4e6] * 8))
    assert advice.bucket_cap_mb < 25
    assert f"Set bucket_cap_mb={advice.bucket_cap_mb}: simulated" in str(advice)


@given(problem=PROBLEMS)
def test_fsdp_groups_cover_every_layer_once_in_order(problem: WireProblem) -> None:
    advice = advise_fsdp(problem)
    layers = [layer for first, last in advice.groups for layer in range(first, last + 1)]
    assert layers == list(range(len(problem.forward_s)))
    compute_s = float(problem.forward_s.sum()) + problem.backward_s
    # Two gathers and a scatter of half the bytes each.
    wire_s = 1.5 * problem.num_bytes.sum() / problem.link.bytes_per_s
    assert advice.step_s >= max(compute_s, wire_s) * (1 - 1e-9)
    assert advice.step_s <= advice.no_prefetch_step_s + 1e-9
    assert advice.step_s <= 1.01 * advice.per_layer_step_s + 1e-9


def test_fsdp_of_one_group_is_what_one_adds_by_hand() -> None:
    # Gather 0.5 + 1 s, forward, gather again, backward, scatter; nothing can overlap.
    problem = replace(problem_of([2e8], alpha_s=1.0), forward_s=np.array([3.0]), backward_s=5.0)
    advice = advise_fsdp(replace(problem, ready_s=np.array([5.0])))
    assert advice.groups == ((0, 0),)
    assert advice.no_prefetch_step_s == pytest.approx(1.0 + 3.0 + 1.0 + 5.0 + 1.0)
    assert advice.step_s == pytest.approx(1.0 + 3.0 + 5.0 + 1.0)
    assert "gather 1 group(s) ahead" in str(advice)


def test_fsdp_gathers_ahead_where_it_pays() -> None:
    advice = advise_fsdp(problem_of([4e6] * 8, alpha_s=0.0))
    assert advice.prefetch >= 1
    assert advice.step_s < advice.no_prefetch_step_s


def test_a_model_without_parameters_has_nothing_to_shard() -> None:
    with pytest.raises(ValueError, match="nothing to shard"):
        advise_fsdp(problem_of([0.0, 0.0]))
