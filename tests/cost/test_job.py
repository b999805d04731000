from collections.abc import Callable
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.cost import Job, LayerCost, Link, Worker, shared_cores_s, shared_work_s


def layer(name: str = "0", **costs: Any) -> LayerCost:
    return LayerCost(
        **{"forward_s": 1.0, "backward_s": 2.0, "gradient_bytes": 4, "name": name} | costs
    )


@pytest.mark.parametrize(
    ("link", "num_bytes", "seconds"),
    [
        (Link(0.5, 16.0), 0, 0.5),
        (Link(0.5, 16.0), 8, 1.0),
        (Link(0.0, 4.0), 8, 2.0),
        (Link(0.25, inf), 1e12, 0.25),
    ],
)
def test_a_transfer_takes_latency_plus_bytes_over_bandwidth(
    link: Link, num_bytes: float, seconds: float
) -> None:
    assert link.transfer_s(num_bytes) == seconds


@given(
    alpha_s=st.floats(1e-6, 1e-1),
    bytes_per_s=st.floats(1e6, 1e12),
    sizes=st.lists(st.integers(0, 1 << 28), min_size=2, max_size=6, unique=True),
)
def test_a_fit_predicts_the_times_it_was_made_from(
    alpha_s: float, bytes_per_s: float, sizes: list[int]
) -> None:
    times = [Link(alpha_s, bytes_per_s).transfer_s(size) for size in sizes]
    fitted = Link.fit(sizes, times)
    assert [fitted.transfer_s(size) for size in sizes] == pytest.approx(times, rel=1e-6)


def test_a_fit_finds_latency_and_bandwidth() -> None:
    truth = Link(alpha_s=2e-5, bytes_per_s=1e10)
    sizes = [1 << 10, 1 << 16, 1 << 20, 1 << 26]
    fitted = Link.fit(sizes, [truth.transfer_s(size) for size in sizes])
    assert fitted.alpha_s == pytest.approx(truth.alpha_s)
    assert fitted.bytes_per_s == pytest.approx(truth.bytes_per_s)


def test_a_fit_weighs_relative_errors_so_that_small_transfers_count() -> None:
    fitted = Link.fit([0, 0, 1_000_000], [0.001, 0.003, 1.0])
    # The best constant c for 0.001 and 0.003 minimises (c/0.001 - 1)**2 + (c/0.003 - 1)**2.
    assert fitted.alpha_s == pytest.approx(0.0012)
    assert fitted.transfer_s(1_000_000) == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [[0.003, 0.003, 0.003], [0.004, 0.003, 0.002]])
def test_a_time_that_does_not_grow_with_size_fits_an_endless_bandwidth(
    seconds: list[float],
) -> None:
    assert Link.fit([0, 1000, 2000], seconds).bytes_per_s == inf


@pytest.mark.parametrize(
    ("num_bytes", "seconds", "message"),
    [
        ([8, 8], [0.1, 0.2], r"at least two different sizes, got \[8.0, 8.0\]"),
        ([8], [0.1], "at least two different sizes"),
        ([], [], "at least two different sizes"),
        ([8, 16], [0.1], "seconds must be positive with shape"),
        ([8, 16], [0.1, 0.0], "seconds must be positive"),
        ([8, 16], [0.1, -1.0], r"seconds\[1\] is -1.0"),
        ([8, 16], [0.1, nan], r"seconds\[1\] is nan"),
        ([8, 16], [inf, 0.1], r"seconds\[0\] is inf"),
        ([-8, 16], [0.1, 0.1], r"num_bytes\[0\] is -8.0"),
    ],
)
def test_a_fit_to_bad_timings_is_refused(
    num_bytes: list[float], seconds: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Link.fit(num_bytes, seconds)


def test_a_job_adds_up_its_layers() -> None:
    job = Job(source="measured", layers=(layer("a"), layer("b", backward_s=5.0, gradient_bytes=8)))
    assert (job.forward_s, job.backward_s, job.gradient_bytes) == (2.0, 7.0, 12)


def test_a_job_has_one_worker_and_no_link_unless_told() -> None:
    job = Job(source="predicted")
    assert job.workers == (Worker(),)
    assert job.link is None
    assert job.sizes.shape == (0,)
    assert job.cost(np.array([3.0])) == [3.0]


@pytest.mark.parametrize(
    ("link", "text"),
    [
        (None, "gradients 2.5 MB, no link, 2 workers"),
        (Link(0.001, 2.5e9), "gradients 2.5 MB, link 1 ms + 2.5 GB/s, 2 workers"),
    ],
)
def test_the_text_of_a_job_has_units(link: Link | None, text: str) -> None:
    layers = (layer(gradient_bytes=2_500_000),)
    job = Job(source="measured", layers=layers, link=link, workers=(Worker(), Worker()))
    assert str(job) == f"measured job: 1 layers, forward 1000 ms, backward 2000 ms, {text}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layer("fc", forward_s=-1.0), "forward_s of layer 'fc' .* got -1.0"),
        (lambda: layer(backward_s=nan), "backward_s of layer '0' .* got nan"),
        (lambda: layer(gradient_bytes=-4), "gradient_bytes of layer '0' .* got -4"),
        (lambda: Link(-1.0, 1.0), "alpha_s must be finite and non-negative, got -1.0"),
        (lambda: Link(0.0, 0.0), "bytes_per_s must be positive, got 0.0"),
        (lambda: Link(0.0, nan), "bytes_per_s must be positive, got nan"),
        (lambda: Link(0.0, 1.0).transfer_s(-1), "num_bytes .* got -1"),
        (lambda: Worker(speed=0.0), "speed must be finite and positive, got 0.0"),
        (lambda: Worker(speed=inf), "speed must be finite and positive, got inf"),
        (lambda: Worker(speed=-1.0), "speed must be finite and positive, got -1.0"),
        (lambda: Worker(overhead_s=-0.1), "overhead_s .* got -0.1"),
        (lambda: Job(source="guessed"), "source must be one of .*got 'guessed'"),
        (lambda: Job(source="measured", workers=()), "at least one Worker"),
        (lambda: Job(source="measured", sizes=np.array([-1.0])), r"sizes\[0\] is -1.0"),
    ],
)
def test_bad_numbers_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_worker_is_of_speed_1_without_overhead_unless_told() -> None:
    assert Worker() == Worker(speed=1.0, overhead_s=0.0)


@given(
    work=st.lists(st.floats(0.0, 9.0), min_size=1, max_size=5),
    steps=st.lists(st.floats(0.0, 2.0), min_size=5, max_size=5),
)
def test_shared_cores_do_all_the_work_and_never_faster_than_alone(
    work: list[float], steps: list[float]
) -> None:
    """Against a walk from one end to the next, and its bounds."""
    slowdown = (1.0 + np.cumsum(steps))[: len(work)]
    (found,) = shared_cores_s([work], slowdown)
    left, now, ends = dict(enumerate(work)), 0.0, np.zeros(len(work))
    while left:
        rate = slowdown[-1] / slowdown[len(left) - 1]
        first = min(left, key=lambda worker: left[worker])
        took_s = left[first] / rate
        now += took_s
        left = {worker: rest - took_s * rate for worker, rest in left.items() if worker != first}
        ends[first] = now
    np.testing.assert_allclose(found, ends, atol=1e-9)
    np.testing.assert_allclose(shared_work_s([found], slowdown), [work], atol=1e-9)
    assert (found <= np.array(work) + 1e-9).all()
    assert (found >= np.array(work) * slowdown[0] / slowdown[-1] - 1e-9).all()


@pytest.mark.parametrize("slowdown", [(1.0,), (2.0, 1.0), (0.0, 1.0)])
def test_a_slowdown_that_cannot_be_is_refused(slowdown: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="slowdown must hold 2 positive numbers that do not fall"):
        Job(source="measured", workers=(Worker(), Worker()), slowdown=slowdown)
