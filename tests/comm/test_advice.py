"""Advice for people who keep PyTorch's own wrappers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.comm import WireProblem, advise_buckets, plan_ddp_cap, step_time_s
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


@pytest.mark.parametrize(
    ("problem", "cap_mb", "text"),
    [
        # One tensor more than fills 3 MiB or less, so caps of 1, 2 and 3 give the same buckets.
        (
            problem_of([4e6] * 8),
            3,
            "Set bucket_cap_mb=3: simulated 268.0 ms instead of 381.0 ms per step with the "
            "default of 25 MB (30% less); no schedule takes less than 240.0 ms.",
        ),
        # Without latency only the bytes after the last gradient count: 4 x 0.1 ms in one bucket.
        (
            problem_of([1e5] * 4, alpha_s=0.0, bytes_per_s=1e9),
            25,
            "Keep bucket_cap_mb=25: simulated 120.4 ms per step with the default of 25 MB; "
            "no other size gains 1%; no schedule takes less than 120.0 ms.",
        ),
    ],
)
def test_the_advice_says_what_to_set_and_what_it_brings(
    problem: WireProblem, cap_mb: int, text: str
) -> None:
    advice = advise_buckets(problem)
    assert advice.bucket_cap_mb == cap_mb
    assert str(advice) == text


def test_the_default_stays_where_nothing_gains() -> None:
    advice = advise_buckets(problem_of([1e5] * 4, bytes_per_s=1e9))
    assert advice.bucket_cap_mb == 25
    assert str(advice).startswith("Keep bucket_cap_mb=25: simulated ")


def test_a_smaller_bucket_is_advised_where_it_overlaps() -> None:
    advice = advise_buckets(problem_of([4e6] * 8))
    assert advice.bucket_cap_mb < 25
    assert f"Set bucket_cap_mb={advice.bucket_cap_mb}: simulated" in str(advice)
