from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.planted import Loop, planted_run


@pytest.mark.parametrize(
    ("change", "outcome", "cause"),
    [
        ({}, "same", None),
        ({"data_s": 10e-3}, "slower", "data"),
        ({"wire_s": 10e-3}, "slower", "wire"),
        ({"update_s": 1e-4}, "faster", "optimizer"),
        ({"element_s": 6e-6}, "faster", "backward"),
        ({"length_spread": 0.5}, "slower", "waiting"),
        ({"slow_outside_s": 0.02}, "slower", "waiting"),
    ],
)
def test_a_change_is_told_with_the_part_that_accounts_for_it(
    change: dict[str, float], outcome: str, cause: str | None
) -> None:
    loop = Loop(num_ranks=4, num_steps=300)
    found = planted_run(loop, 0).compare(planted_run(replace(loop, **change), 1))
    assert (found.outcome, found.cause, found.unit) == (outcome, cause, "step")
    assert found.low <= found.change <= found.high
    assert found.outcome in str(found) or "no difference beyond noise" in str(found)


def test_the_same_loop_is_the_same_under_other_noise() -> None:
    runs = [planted_run(Loop(num_ranks=2, noise=0.1), seed) for seed in range(20)]
    outcomes = [runs[0].compare(run).outcome for run in runs[1:]]
    # An interval of 95 % errs now and then; a difference below 1 % is none.
    assert outcomes.count("same") >= 18


def test_batches_of_another_size_are_compared_by_example() -> None:
    small, large = (
        planted_run(Loop(num_ranks=2, num_examples=num, noise=0.02), 0) for num in (8, 32)
    )
    found = small.compare(large)
    assert (found.unit, found.outcome) == ("example", "faster")
    assert found.before_s == pytest.approx(small.step_s / 16)
    assert "per example" in str(found)


def test_half_a_loader_is_found_at_its_size() -> None:
    slow, fast = (planted_run(Loop(num_ranks=2, data_s=s, noise=0.02), 0) for s in (20e-3, 10e-3))
    found = slow.compare(fast)
    assert found.by_class["data"] == pytest.approx(-10e-3, rel=0.02)
    assert found.low <= fast.step_s / slow.step_s - 1 <= found.high


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.05), st.integers(20, 80))
def test_the_classes_add_up_to_the_difference(seed: int, data_s: float, num_steps: int) -> None:
    loop = Loop(num_ranks=3, num_steps=40)
    other = replace(loop, data_s=data_s, num_steps=num_steps)
    found = planted_run(loop, seed).compare(planted_run(other, seed + 1))
    plain = found.to_dict()
    assert sum(found.by_class.values()) == pytest.approx(found.after_s - found.before_s, abs=1e-9)
    assert plain["source"] == "measured"
    assert plain["interval"][0] <= plain["interval"][1]
