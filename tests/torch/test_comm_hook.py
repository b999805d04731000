"""What is made of the marks of DistributedDataParallel's buckets."""

import pytest

from paceline.comm import step_time_s
from paceline.cost import Link
from paceline.torch.comm.ddp._bucket_times import (
    BucketMarks,
    BucketTimes,
    DDPAdvice,
    plan_of,
    problem_of,
)
from paceline.torch.model._clock import CpuClock

NUM_BYTES = [1e6, 2e6, 3e6]


def step(begin: float = 10.0, *, last_done: float = 0.9) -> BucketMarks:
    """Parameters 2 and 1 fill the first bucket, 0 the second; 2 gets no gradient."""
    marks = BucketMarks(begin)
    marks.tensors = {0: (2, 1), 1: (0,)}
    marks.gradients = {1: begin + 0.2, 0: begin + 0.4}
    marks.bucket_ready = {0: begin + 0.2, 1: begin + 0.4}
    marks.bucket_done = {0: begin + 0.7, 1: begin + last_done}
    marks.end = begin + 0.5
    assert marks.close(begin + 1.5)
    return marks


def test_times_are_medians_since_the_backward_pass_began() -> None:
    steps = [step(), step(20.0, last_done=5.0), step(30.0)]
    times = BucketTimes.of(steps, CpuClock(), NUM_BYTES)
    assert times.tensors == ((2, 1), (0,))
    assert times.num_bytes.tolist() == [5e6, 1e6]
    assert times.ready_s == pytest.approx([0.2, 0.4])
    assert times.done_s == pytest.approx([0.7, 0.9])
    assert times.gradient_s == pytest.approx([0.4, 0.2, 0.0])
    assert times.backward_s == pytest.approx(0.5)
    assert times.exposed_s == pytest.approx(0.4)
    assert times.step_s == pytest.approx(1.5)
    assert times.num_steps == 3


def test_steps_with_other_buckets_do_not_count() -> None:
    other = step(last_done=5.0)
    other.tensors = {0: (2, 1, 0)}
    assert BucketTimes.of([other, step()], CpuClock(), NUM_BYTES).num_steps == 1


def test_what_was_hidden_is_not_exposed() -> None:
    times = BucketTimes.of([step(last_done=0.45)], CpuClock(), NUM_BYTES)
    assert times.exposed_s == pytest.approx(0.2)  # The first bucket came in last.


@pytest.mark.parametrize("lacks", ["end", "bucket_done"])
def test_a_step_that_broke_off_does_not_count(lacks: str) -> None:
    marks = step()
    setattr(marks, lacks, None if lacks == "end" else {0: 1.0})
    assert not marks.close(99.0)


def test_the_link_is_what_the_buckets_saw() -> None:
    times = BucketTimes.of([step()], CpuClock(), NUM_BYTES)
    # 5 MB in 0.5 s; 1 MB in 0.2 s, as it waited for the first.
    assert times.transfer_s == pytest.approx([0.5, 0.2])
    link = times.link(Link(9.0, 1.0))
    assert [link.alpha_s, link.bytes_per_s] == pytest.approx([0.125, 1 / 7.5e-8])
    alike = BucketTimes.of([step()], CpuClock(), [4e6, 2e6, 3e6])
    link = alike.link(Link(0.05, 1.0))
    assert [link.alpha_s, link.bytes_per_s] == pytest.approx([0.05, 9e6 / 0.6])


def test_buckets_fill_in_the_order_of_arrival() -> None:
    problem, order = problem_of([0.4, 0.2, 0.0, 0.1], [*NUM_BYTES, 0.0], 0.5, 1.0, Link(0.0, 1e7))
    assert order == [0, 1, 2]
    assert problem.num_bytes.tolist() == NUM_BYTES
    assert problem.ready_s.tolist() == [0.4, 0.2, 0.0]
    assert problem.bound_s == 1.5


def test_advice_says_what_is_simulated_and_what_is_measured() -> None:
    advice = DDPAdvice(
        bucket_cap_mb=4.0,
        predicted_s=0.1,
        predicted_now_s=0.12,
        measured_s=0.125,
        exposed_s=0.03,
        num_steps=20,
    )
    assert str(advice) == (
        "bucket_cap_mb=4: 100 ms per step (simulated); now 120 ms (simulated), "
        "125 ms (measured over 20 steps), of which 30 ms wait for the wire"
    )


def test_the_measured_buckets_are_priced_too() -> None:
    times = BucketTimes.of([step()], CpuClock(), NUM_BYTES)
    problem, order = problem_of([0.4, 0.2, 0.0], NUM_BYTES, 0.5, 0.6, Link(0.0, 1e7))
    plan = plan_of(times, problem, order)
    # The first bucket lands at 0.2 + 0.5 s, the second 0.1 s later.
    assert step_time_s(problem, plan) == pytest.approx(0.8 + 0.6)
