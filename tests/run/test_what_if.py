from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.planted import Loop, planted_run

from paceline.cost import Job, LayerCost, Worker
from paceline.plan import data_parallel_graph
from paceline.predict.run import ring_link
from paceline.run import Run, WireModel
from paceline.timeline import simulate

RAGGED = Loop(num_ranks=2, num_steps=400, length_spread=0.5, wire_s=5e-3)


def run_of(**changes: float) -> Run:
    return planted_run(replace(RAGGED, **changes), 0)


def test_more_ranks_of_the_same_loop_take_what_was_simulated() -> None:
    """Compute, waiting and loader from two ranks, against a run of eight."""
    for change in ({}, {"data_s": 20e-3}, {"slow_factor": 1.0, "accumulate": 4}):
        loop = replace(RAGGED, wire_s=0.0, **change)
        simulated = planted_run(loop, 0).what_if([8]).points[0].step_s
        measured = planted_run(replace(loop, num_ranks=8), 1).step_s
        assert simulated == pytest.approx(measured, rel=0.05)


def test_what_slows_all_ranks_at_once_makes_none_of_them_wait() -> None:
    loop = replace(RAGGED, wire_s=0.0, shared_noise=0.6, length_spread=0.2, num_steps=2000)
    curve = planted_run(loop, 0).what_if([2, 8])
    measured = planted_run(replace(loop, num_ranks=8), 1).step_s
    assert curve.replayed_step_s == pytest.approx(curve.measured_step_s, rel=0.03)
    assert curve.points[1].step_s == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("num_cores", [1, 2, 4])
def test_ranks_that_share_cores_end_when_the_cores_have_done_their_work(num_cores: int) -> None:
    """Four ranks from two: of equal work, each gets its share of the cores; none is lost."""
    loop = replace(RAGGED, wire_s=0.0, noise=0.0, length_spread=0.0, data_s=0.0)
    run = planted_run(loop, 0)
    alone, shared = (run.what_if([4], num_cores=num).points[0] for num in (None, num_cores))
    assert shared.step_s == pytest.approx(alone.step_s * min(2, 4 / num_cores), rel=0.01)
    ragged = run_of(wire_s=0.0)
    points = [ragged.what_if([4], num_cores=num).points[0].step_s for num in (1, 2, 3, 4, None)]
    assert points == sorted(points, reverse=True)
    assert points[3] == pytest.approx(points[4])


def test_the_run_itself_is_simulated_as_it_was_measured() -> None:
    for run in (run_of(), run_of(wire_s=0.03), run_of(slow_factor=1.5), run_of(accumulate=4)):
        curve = run.what_if([2])
        assert curve.replayed_step_s == pytest.approx(curve.measured_step_s, rel=0.03)
        assert curve.points[0].step_s == pytest.approx(curve.measured_step_s, rel=0.03)


@pytest.mark.parametrize(
    ("run", "limit"),
    [
        (run_of(length_spread=0.0), "compute"),
        (run_of(length_spread=1.0), "straggler"),
        (run_of(wire_s=0.2), "wire"),
        (run_of(data_s=0.3), "loader"),
        (run_of(num_examples=1, update_s=0.02), "small batch"),
    ],
)
def test_the_limit_is_what_was_planted(run: Run, limit: str) -> None:
    point = run.what_if([8]).points[0]
    assert point.limit == limit
    assert sum(point.parts_s.values()) == pytest.approx(point.step_s)


def test_each_change_does_what_it_says() -> None:
    run = run_of()
    step_s = {
        name: run.what_if([8], **change).points[0].step_s
        for name, change in {
            "as it was": {},
            "window": {"balance": "window"},
            "perfect": {"balance": "perfect"},
            "overlapped": {"comm": "overlapped"},
            "fast wire": {"bytes_per_s": 1e12},
            "slow wire": {"bytes_per_s": 1e7},
            "late wire": {"hop_s": 1e-2},
            "fast device": {"device_speed": 4.0},
        }.items()
    }
    order = ("perfect", "window", "as it was", "late wire", "slow wire")
    assert [step_s[name] for name in order] == sorted(step_s[name] for name in order)
    assert step_s["overlapped"] <= step_s["as it was"]
    assert step_s["fast wire"] <= step_s["as it was"]
    assert step_s["as it was"] / 4 < step_s["fast device"] < step_s["as it was"] / 2


def test_a_loader_of_its_own_keeps_its_rate_beside_a_faster_device() -> None:
    run = run_of(data_s=0.02, num_workers=2, length_spread=0.0)
    now, fast = (run.what_if([1], device_speed=speed).points[0] for speed in (1.0, 8.0))
    assert fast.limit == "loader"
    assert fast.step_s == pytest.approx(now.step_s, rel=0.1)


def test_a_curve_says_simulated_and_goes_far() -> None:
    curve = run_of().what_if([1, 512, 4096])
    plain = curve.to_dict()
    assert (plain["source"], len(plain["points"])) == ("simulated", 3)
    assert "simulated" in str(curve).splitlines()[0]
    assert [point.efficiency <= 1.01 for point in curve.points] == [True] * 3
    assert curve.points[0].efficiency == pytest.approx(1.0)


def test_what_is_not_known_is_one_line() -> None:
    alone = planted_run(replace(RAGGED, num_ranks=1, wire_s=0.0), 0)
    assert alone.what_if([1]).points[0].step_s == pytest.approx(alone.step_s, rel=0.03)
    for bad, message in (
        ({"num_workers": [0]}, "num_workers"),
        ({"num_workers": []}, "num_workers"),
        ({"num_workers": [10**9]}, "num_workers"),
        ({"balance": "magic"}, "balance must be one of none"),
        ({"comm": "magic"}, "comm must be one of ddp"),
        ({"device_speed": 0.0}, "device_speed"),
        ({"bytes_per_s": float("inf")}, "bytes_per_s"),
        ({"hop_s": -1.0}, "hop_s"),
        ({"num_cores": 0}, "num_cores"),
    ):
        with pytest.raises(ValueError, match=message):
            run_of().what_if(**{"num_workers": [2], **bad})  # type: ignore[arg-type]
    blind = planted_run(replace(RAGGED, num_ranks=1), 0)
    with pytest.raises(ValueError, match="gradients"):
        Run.of(blind.steps).what_if([2], bytes_per_s=1e9)


@pytest.mark.parametrize("rate", [1e7, 1e8, 1e9, 1e11])
@pytest.mark.parametrize("num_ranks", [2, 5])
def test_the_wire_is_what_the_event_simulator_says(rate: float, num_ranks: int) -> None:
    """Buckets as layers, whose backward seconds are in proportion to their bytes."""
    wire = WireModel(gradient_bytes=9e6, bucket_bytes=2e6, hop_s=1e-4, bytes_per_s=rate)
    rest = (9e6 - 2**20) / 4
    sizes = [rest] * 4 + [2**20]
    layers = tuple(
        LayerCost(name="", forward_s=0.01, backward_s=0.1 * size / 9e6, gradient_bytes=size)  # type: ignore[arg-type]
        for size in sizes
    )
    job = Job(
        source="measured",
        layers=layers,
        link=ring_link(rate, num_ranks, hop_latency_s=1e-4),
        workers=(Worker(),) * num_ranks,
    )
    buckets = [[layer] for layer in (4, 3, 2, 1, 0)]
    graph = data_parallel_graph(job, np.full((1, num_ranks), 0.15), buckets=buckets)
    exposed_s = wire.exposed_s(num_ranks, np.full(1, 0.05), np.full(1, 0.1), "ddp")
    assert 0.15 + exposed_s[0] == pytest.approx(simulate(graph).makespan_s)


PASSES = st.floats(1e-3, 1.0).map(lambda seconds: np.full(8, seconds))


@settings(max_examples=60, deadline=None)
@given(st.floats(1e3, 1e10), st.floats(1e5, 1e9), st.floats(1e6, 1e11), st.integers(2, 64), PASSES)
def test_a_faster_wire_exposes_less_and_overlap_never_more(
    gradient_bytes: float, bucket_bytes: float, rate: float, num_ranks: int, passes_s: np.ndarray
) -> None:
    wire = WireModel(
        gradient_bytes=gradient_bytes, bucket_bytes=bucket_bytes, hop_s=1e-6, bytes_per_s=rate
    )
    exposed = wire.exposed_s(num_ranks, passes_s, passes_s, "ddp")
    faster = replace(wire, bytes_per_s=2 * rate).exposed_s(num_ranks, passes_s, passes_s, "ddp")
    overlapped = wire.exposed_s(num_ranks, passes_s, passes_s, "overlapped")
    assert (exposed > 0).all()
    assert (faster <= exposed * (1 + 1e-9)).all()
    assert (overlapped <= exposed * (1 + 1e-9)).all()
    refitted = wire.fitted(num_ranks, passes_s, passes_s, float(exposed.mean()))
    again = refitted.exposed_s(num_ranks, passes_s, passes_s, "ddp")
    assert float(again.mean()) == pytest.approx(float(exposed.mean()), rel=0.01, abs=1e-6)
