"""Plans of what to defer: against brute force, and what they say."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.cost import Job, LayerCost, Link, Worker
from paceline.overlap import (
    Lane,
    SplitCost,
    Threads,
    Way,
    choose_way,
    defer_all,
    plan_lanes,
    step_graph,
)
from paceline.timeline import Kind, simulate

seconds = st.floats(0.01, 1.0)
parts = st.integers(1, 6).flatmap(
    lambda count: st.tuples(
        st.lists(seconds, min_size=count, max_size=count),
        st.lists(seconds, min_size=count, max_size=count),
    )
)


def job(num_layers: int = 8, num_workers: int = 1, wire_s: float = 0.0) -> Job:
    layers = tuple(
        LayerCost(name=f"layer{n}", forward_s=0.01, backward_s=0.02, gradient_bytes=1000)
        for n in range(num_layers)
    )
    link = Link(alpha_s=wire_s, bytes_per_s=1e9)
    return Job(source="predicted", layers=layers, link=link, workers=(Worker(),) * num_workers)


@given(parts)
@settings(max_examples=40)
def test_a_plan_is_never_worse_than_plain_and_near_the_best_subset(
    columns: tuple[list[float], list[float]],
) -> None:
    input_s, weight_s = columns
    cost = SplitCost.of(forward_s=0.1, input_s=input_s, weight_s=weight_s)
    chosen = choose_way(Way(None, cost), [Way(None, cost)], overhead_s=0.0, min_gain=0.0)
    every = product((False, True), repeat=len(input_s))
    best_s = min(simulate(step_graph(cost, deferred)).makespan_s for deferred in every)
    assert chosen.predicted_s <= cost.total_s * (1 + 1e-9)
    assert chosen.predicted_s <= best_s * 1.35
    assert chosen.plain_s == pytest.approx(cost.total_s)


def test_equal_layers_are_halved() -> None:
    chosen = plan_lanes(job(), free_share=1.0, overhead_s=0.0)
    # 8 x 10 ms forward, 8 x 10 ms input gradients, and one weight gradient behind.
    assert chosen.predicted_s == pytest.approx(0.17)
    assert chosen.plain_s == pytest.approx(0.24)
    assert chosen.deferred is not None
    assert chosen.deferred[0] == "layer7"
    assert "of 8 layers are deferred" in str(chosen)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"free_share": 0.0}, "no core or device time is free"),
        ({"free_share": 1.0, "weight_share": 0.0}, "nothing to defer"),
        ({"free_share": 1.0, "overhead_s": 1.0}, "must be won"),
    ],
)
def test_where_nothing_is_won_nothing_is_deferred(arguments: dict[str, float], reason: str) -> None:
    chosen = plan_lanes(job(), **arguments)  # type: ignore[arg-type]  # all are numbers
    assert not chosen.defers
    assert chosen.gain == 1.0
    assert reason in str(chosen)


@pytest.mark.parametrize(
    ("overhead_s", "min_gain", "predicted_s"),
    [
        (0.0, 0.2, 4.0),
        (0.0, 0.21, None),
        (0.5, 0.0, 4.5),
        (0.5, 0.11, None),
        (1.5, 0.0, None),
    ],
)
def test_a_split_is_kept_only_if_it_gains_as_much_as_it_must(
    overhead_s: float, min_gain: float, predicted_s: float | None
) -> None:
    # Plain: 1 + 2 x (1 + 1). Split: the first weight gradient runs beside the second input's.
    cost = SplitCost.of(forward_s=1.0, input_s=[1.0, 1.0], weight_s=[1.0, 1.0])
    way = Way(None, cost)
    chosen = choose_way(way, [way], overhead_s=overhead_s, min_gain=min_gain)
    assert chosen.defers == (predicted_s is not None)
    assert chosen.predicted_s == (predicted_s or 5.0)
    assert chosen.plain_s == 5.0


@pytest.mark.parametrize(
    ("overhead_s", "reason"),
    [
        (0.0, "4000 ms instead of 5000 ms per step (simulated)"),
        (
            1.5,
            "the best split takes 6000 ms, plain 5000 ms per step (simulated), and 2% must be won",
        ),
    ],
)
def test_the_reason_holds_both_times(overhead_s: float, reason: str) -> None:
    cost = SplitCost.of(forward_s=1.0, input_s=[1.0, 1.0], weight_s=[1.0, 1.0])
    way = Way(None, cost)
    assert choose_way(way, [way], overhead_s=overhead_s).reason == reason


@pytest.mark.parametrize(
    ("plain_s", "predicted_s", "gain"), [(3.0, 2.0, 1.5), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_the_gain_is_plain_over_planned_seconds(
    plain_s: float, predicted_s: float, gain: float
) -> None:
    assert replace(defer_all(), plain_s=plain_s, predicted_s=predicted_s).gain == gain


def test_a_step_is_laid_out_as_by_hand() -> None:
    cost = SplitCost.of(
        forward_s=1.0,
        input_s=[1.0, 2.0],
        weight_s=[3.0, 4.0],
        assist_s=[5.0, 6.0],
        tail_s=0.5,
        wire_s=[7.0, 8.0],
    )
    assert (cost.num_layers, cost.total_s) == (2, 11.5)
    run = simulate(step_graph(cost, [True, False], overhead_s=0.25))
    spans = {span.name: (span.lane, span.kind, span.start_s, span.duration_s) for span in run}
    assert spans == {
        "forward": ("main", Kind.FORWARD, 0.0, 1.0),
        "input 0": ("main", Kind.BACKWARD, 1.0, 1.25),
        "weight 0": ("assist", Kind.BACKWARD, 2.25, 5.25),
        "all-reduce 0": ("comm", Kind.COLLECTIVE, 7.5, 7.0),
        "input 1": ("main", Kind.BACKWARD, 2.25, 2.0),
        "weight 1": ("main", Kind.BACKWARD, 4.25, 4.0),
        "all-reduce 1": ("comm", Kind.COLLECTIVE, 14.5, 8.0),
        "rest": ("main", Kind.BACKWARD, 8.25, 0.5),
    }


def test_a_bound_that_costs_nothing_is_taken() -> None:
    assert plan_lanes(job(), free_share=1.0).max_pending == 1
    assert plan_lanes(job(), free_share=0.6).max_pending is not None


def test_gradients_are_sent_after_the_weight_gradients() -> None:
    alone, wired = (
        plan_lanes(job(), free_share=1.0),
        plan_lanes(job(num_workers=2, wire_s=0.05), free_share=1.0),
    )
    # The wire, 8 x 50 ms, begins after the forward pass and the first layer's gradients.
    assert wired.predicted_s > alone.predicted_s
    assert wired.predicted_s == pytest.approx(0.08 + 0.01 + 0.01 + 8 * 0.05, rel=1e-3)


def test_layers_without_gradients_are_not_deferred() -> None:
    frozen = LayerCost(name="frozen", forward_s=0.01, backward_s=0.02, gradient_bytes=0)
    trained = job(2).layers
    chosen = plan_lanes(Job(source="predicted", layers=(*trained, frozen)), free_share=1.0)
    assert chosen.deferred is not None
    assert "frozen" not in chosen.deferred


def test_of_two_ways_the_faster_is_taken() -> None:
    slow = SplitCost.of(forward_s=0.1, input_s=[0.1] * 4, weight_s=[0.1] * 4)
    fast = SplitCost.of(forward_s=0.1, input_s=[0.05] * 4, weight_s=[0.05] * 4)
    ways = [Way(Threads(), slow), Way(Threads(forward=2), fast)]
    assert choose_way(Way(None, slow), ways).threads == Threads(forward=2)


def test_tasks_that_cost_as_much_as_they_win_are_joined() -> None:
    chosen = plan_lanes(job(16), free_share=1.0, overhead_s=0.008)
    assert chosen.layers_per_task > 1
    assert chosen.predicted_s < plan_lanes(job(16), free_share=0.0).plain_s
    cost = SplitCost.of(forward_s=0.0, input_s=[1.0] * 4, weight_s=[1.0] * 4)
    # Three layers make a task behind the third input gradient; main does the last itself.
    run = simulate(step_graph(cost, [True] * 4, layers_per_task=3, overhead_s=0.5))
    spans = {span.name: (span.lane, span.start_s, span.duration_s) for span in run}
    assert spans["weight 0"] == ("assist", 3.5, 3.5)
    assert spans["weight 3"] == ("main", 4.5, 1.0)


def test_all_can_be_deferred_without_asking() -> None:
    chosen = defer_all(threads=Threads(backward=2), max_pending=3)
    assert chosen.defers
    assert chosen.deferred is None
    assert str(chosen) == (
        "weight gradients of all layers are deferred, threads: 1 forward, 2 backward, 1 assist: "
        "as told"
    )


@pytest.mark.parametrize("share", [-0.1, 1.5, np.nan])
def test_shares_are_checked(share: float) -> None:
    with pytest.raises(ValueError, match=r"free_share must lie in \[0, 1\]"):
        plan_lanes(job(), free_share=share)


def test_several_workers_need_a_link() -> None:
    layers = job().layers
    with pytest.raises(ValueError, match="a job of 2 workers needs a link"):
        plan_lanes(Job(source="predicted", layers=layers, workers=(Worker(),) * 2), free_share=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"max_pending": 0}, "max_pending must be at least 1"),
        ({"niceness": 20}, r"niceness must lie in \[0, 19\]"),
        ({"niceness": -1}, r"niceness must lie in \[0, 19\]"),
    ],
)
def test_lanes_are_checked(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lane(**arguments)  # type: ignore[arg-type]  # all are integers


def test_threads_and_costs_are_checked() -> None:
    with pytest.raises(ValueError, match="assist must be at least 1 thread"):
        Threads(assist=0)
    with pytest.raises(ValueError, match=r"weight_s must have shape \(1,\)"):
        SplitCost.of(forward_s=0.0, input_s=[1.0], weight_s=[1.0, 2.0])
    with pytest.raises(ValueError, match=r"one value per layer \(1\), got 2"):
        step_graph(SplitCost.of(forward_s=0.0, input_s=[1.0], weight_s=[1.0]), [True, False])
