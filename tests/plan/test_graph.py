from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.cost import Job, LayerCost, Link, Worker
from paceline.plan import data_parallel_graph
from paceline.timeline import BUSY_KINDS, Kind, Span, Timeline, simulate

LINK = Link(alpha_s=0.0, bytes_per_s=4.0)
ONE_LAYER = (LayerCost(name="0", forward_s=1.0, backward_s=2.0, gradient_bytes=8),)
TWO_LAYERS = (
    LayerCost(name="0", forward_s=1.0, backward_s=1.0, gradient_bytes=8),
    LayerCost(name="1", forward_s=1.0, backward_s=3.0, gradient_bytes=8),
)


def job(
    layers: tuple[LayerCost, ...] = ONE_LAYER,
    *,
    num_workers: int = 2,
    overhead_s: float = 0.0,
    link: Link | None = LINK,
) -> Job:
    workers = (Worker(overhead_s=overhead_s),) * num_workers
    return Job(source="predicted", layers=layers, link=link, workers=workers)


def times_of(run: Timeline, rank: int, step: int = 0) -> dict[str, tuple[float, float]]:
    """Return begin and end of what took time, by name."""
    rows = [s for s in run if (s.rank, s.step) == (rank, step) and s.duration_s]
    times: dict[str, tuple[float, float]] = {}
    for row in rows:
        first, _ = times.get(row.name, (row.start_s, 0.0))
        times[row.name] = first, row.start_s + row.duration_s
    return times


def collectives(run: Timeline) -> list[Span]:
    return [span for span in run if span.kind == Kind.COLLECTIVE]


@pytest.mark.parametrize("link", [None, Link(1.0, 1.0)])
def test_one_worker_only_computes(link: Link | None) -> None:
    run = simulate(
        data_parallel_graph(job(num_workers=1, overhead_s=0.5, link=link), [[3.0], [6.0]])
    )
    assert collectives(run) == []
    assert times_of(run, 0) == {
        "forward": (0.0, 1.0),
        "backward": (1.0, 3.0),
        "optimizer": (3.0, 3.5),
    }
    assert times_of(run, 0, step=1) == {
        "forward": (3.5, 5.5),
        "backward": (5.5, 9.5),
        "optimizer": (9.5, 10.0),
    }


def test_a_fast_rank_waits_for_a_slow_one_at_the_all_reduce() -> None:
    run = simulate(data_parallel_graph(job(overhead_s=0.5), [[3.0, 6.0], [3.0, 3.0]]))
    assert times_of(run, 0) == {
        "forward": (0.0, 1.0),
        "backward": (1.0, 3.0),
        "bucket 0": (3.0, 8.0),
        "optimizer": (8.0, 8.5),
    }
    assert times_of(run, 1) == {
        "forward": (0.0, 2.0),
        "backward": (2.0, 6.0),
        "bucket 0": (6.0, 8.0),
        "optimizer": (8.0, 8.5),
    }
    summary = run.summary()
    assert summary.step_times_s.tolist() == [8.5, 5.5]
    assert summary.waiting_s.tolist() == [3.0, 0.0]
    assert summary.exposed_comm_s.tolist() == [4.0, 4.0]
    assert summary.slowest_rank == 1


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        (((1,), (0,)), {"bucket 0": (5.0, 7.0), "bucket 1": (7.0, 9.0)}),
        (((1, 0),), {"bucket 0": (6.0, 10.0)}),
        (((0,), (1,)), {"bucket 0": (6.0, 8.0), "bucket 1": (8.0, 10.0)}),
        (((1,),), {"bucket 0": (5.0, 7.0)}),
        ((), {}),
        (None, {"bucket 0": (6.0, 10.0)}),
    ],
    ids=["overlapped", "in one", "wrong way round", "one layer only", "none", "as DDP does"],
)
def test_a_bucket_is_sent_when_its_gradients_are_ready(
    buckets: Any, expected: dict[str, tuple[float, float]]
) -> None:
    run = simulate(data_parallel_graph(job(TWO_LAYERS), [[6.0, 6.0]], buckets=buckets))
    compute = {"forward": (0.0, 2.0), "backward": (2.0, 6.0)}
    assert times_of(run, 0) == times_of(run, 1) == compute | expected


def test_the_optimizer_waits_for_the_last_bucket_and_the_next_step_for_it() -> None:
    graph = data_parallel_graph(
        job(TWO_LAYERS, overhead_s=1.0), [[6.0, 6.0]] * 2, buckets=[[1], [0]]
    )
    run = simulate(graph)
    assert times_of(run, 0)["optimizer"] == (9.0, 10.0)
    assert times_of(run, 1, step=1)["forward"] == (10.0, 12.0)


def test_layers_without_times_make_the_whole_step_a_forward_pass() -> None:
    layers = (LayerCost(name="0", forward_s=0.0, backward_s=0.0, gradient_bytes=8),)
    run = simulate(data_parallel_graph(job(layers), [[3.0, 4.0]]))
    assert times_of(run, 0) == {"forward": (0.0, 3.0), "bucket 0": (3.0, 6.0)}


def test_no_steps_make_an_empty_graph() -> None:
    assert len(data_parallel_graph(job(), np.zeros((0, 2)))) == 0


@pytest.mark.parametrize(
    ("compute_s", "message"),
    [
        ([3.0, 6.0], r"\(num_steps, 2 workers\), got \(2,\)"),
        ([[3.0]], r"got \(1, 1\)"),
        ([[3.0, -1.0]], "duration_s finite and non-negative"),
        ([[3.0, np.nan]], "duration_s finite and non-negative"),
    ],
)
def test_bad_seconds_are_refused(compute_s: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data_parallel_graph(job(), compute_s)


@pytest.mark.parametrize("bucket", [(1,), (-1,), (0, 3), ()])
def test_a_bucket_of_layers_that_do_not_exist_is_refused(bucket: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"layer indices in \[0, 1\), but buckets\[1\] is \("):
        data_parallel_graph(job(), [[1.0, 1.0]], buckets=[(0,), bucket])


def test_several_workers_need_a_link() -> None:
    with pytest.raises(ValueError, match="a job of 2 workers needs a link"):
        data_parallel_graph(job(link=None), [[1.0, 1.0]])


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    quarters = st.integers(0, 8).map(lambda count: count / 4)
    layers = [
        LayerCost(
            name=str(index),
            forward_s=draw(quarters),
            backward_s=draw(quarters),
            gradient_bytes=draw(st.integers(0, 40)) << 20,
        )
        for index in range(draw(st.integers(0, 4)))
    ]
    overheads = draw(st.lists(quarters, min_size=1, max_size=3))
    return Job(
        source="predicted",
        layers=tuple(layers),
        link=Link(draw(quarters), float(10 << 20)),
        workers=tuple(Worker(overhead_s=overhead_s) for overhead_s in overheads),
    )


@given(job=jobs(), data=st.data())
def test_each_rank_computes_as_long_as_it_was_told_and_no_step_is_faster(
    job: Job, data: st.DataObject
) -> None:
    num_ranks = len(job.workers)
    row = st.lists(st.integers(0, 5), min_size=num_ranks, max_size=num_ranks)
    compute_s = np.array(data.draw(st.lists(row, min_size=1, max_size=3)), dtype=np.float64)
    run = simulate(data_parallel_graph(job, compute_s))
    expected = compute_s + [worker.overhead_s for worker in job.workers]
    found = np.zeros_like(expected)
    busy = np.isin(run.kind, BUSY_KINDS)
    np.add.at(found, (run.step[busy], run.rank[busy]), run.duration_s[busy])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert run.makespan_s >= expected.sum(axis=0).max() - 1e-9
