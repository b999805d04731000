"""What holds for every block planner, and how near ours comes to the best there is."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.comm import (
    BlockPlan,
    WireProblem,
    baseline_plans,
    fluid_bound_s,
    plan_blocks,
    plan_bytescheduler,
    plan_ddp,
    plan_ddp_cap,
    plan_dear,
    plan_merged,
    plan_p3,
    plan_prophet,
    plan_wait_free,
    step_time_s,
    wire_graph,
)
from paceline.cost import Job, LayerCost, Link
from paceline.timeline import simulate

Policy = Callable[[WireProblem], BlockPlan]
# Caps of a few bytes, so that the tiny problems below are cut.
POLICIES: dict[str, Policy] = {
    "ddp": lambda problem: plan_ddp(problem, bucket_bytes=7, first_bucket_bytes=2),
    "ddp default": plan_ddp,
    "wait-free": plan_wait_free,
    "mg-wfbp": plan_merged,
    "p3": lambda problem: plan_p3(problem, slice_bytes=2.5),
    "bytescheduler": lambda problem: plan_bytescheduler(problem, partition_bytes=4.0),
    "prophet": plan_prophet,
    "dear": lambda problem: plan_dear(problem, bucket_bytes=7),
    "paceline": plan_blocks,
}
WAITS_FOR_ALL = {"ddp", "ddp default", "wait-free", "mg-wfbp"}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def problem_of(
    *layers: tuple[float, float, Sequence[float]],
    alpha_s: float = 0.0,
    bytes_per_s: float = 1.0,
    num_in_flight: int = 1,
    block_cost_s: float = 0.0,
    num_carried: int = 0,
) -> WireProblem:
    """Layers of (forward seconds, backward seconds, bytes of each tensor).

    The last `num_carried` tensors are needed by no layer of the next forward pass.
    """
    forward_s, backward_s, num_bytes = zip(*layers, strict=True)
    ready_s = np.cumsum(np.array(backward_s)[::-1])[::-1]
    counts = [len(sizes) for sizes in num_bytes]
    layer = np.repeat(np.arange(len(layers)), counts)
    layer[max(len(layer) - num_carried, 0) :] = len(layers)
    return WireProblem(
        forward_s=np.array(forward_s),
        layer=layer,
        num_bytes=np.array([size for sizes in num_bytes for size in sizes], dtype=np.float64),
        ready_s=np.repeat(ready_s, counts),
        backward_s=float(sum(backward_s)),
        link=Link(alpha_s, bytes_per_s),
        num_in_flight=num_in_flight,
        block_cost_s=block_cost_s,
    )


# Seconds are multiples of 1/8 and sizes whole, so that sums are exact in any order.
SECONDS = st.integers(0, 24).map(lambda eighths: eighths / 8)
LAYERS = st.tuples(SECONDS, SECONDS, st.lists(st.integers(1, 20), max_size=3))
LINK = st.fixed_dictionaries(
    {
        "alpha_s": st.sampled_from([0.0, 0.125, 1.0]),
        "bytes_per_s": st.sampled_from([1.0, 4.0, 16.0]),
        "num_in_flight": st.integers(1, 3),
        "block_cost_s": st.sampled_from([0.0, 0.25]),
        "num_carried": st.sampled_from([0, 0, 1, 2]),
    }
)
PROBLEMS = st.builds(
    lambda layers, link: problem_of(*layers, **link), st.lists(LAYERS, min_size=1, max_size=6), LINK
)


def training_like(
    layers: list[tuple[int, int]], ratio: float, latency: float, num_in_flight: int
) -> WireProblem:
    """Layers of (compute, bytes), backward twice the forward; the rest relative to compute."""
    compute_s = 3.0 * sum(seconds for seconds, _ in layers)
    return problem_of(
        *((float(seconds), 2.0 * seconds, [float(size)]) for seconds, size in layers),
        alpha_s=latency * compute_s,
        bytes_per_s=sum(size for _, size in layers) / (ratio * compute_s),
        num_in_flight=num_in_flight,
    )


TINY = st.builds(
    training_like,
    st.lists(st.tuples(st.integers(1, 10), st.integers(1, 30)), min_size=1, max_size=4),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 1e-3, 1e-2, 3e-2]),
    st.integers(1, 3),
)
TRAINING_LIKE = problem_of(
    *((0.25, 0.5, [float(size)]) for size in (3, 1, 4, 1, 5, 9, 2, 6)), alpha_s=0.125, bytes_per_s=4
)


@each_policy
class TestEveryPolicy:
    @given(problem=PROBLEMS)
    @settings(max_examples=40)
    def test_sends_every_byte_of_every_tensor_exactly_once_front_to_back(
        self, policy: Policy, problem: WireProblem
    ) -> None:
        plan = policy(problem)
        assert plan.num_bytes.min(initial=1.0) > 0
        # DeAR moves every byte twice at half the price; its halves are the parts here.
        for tensor, size in enumerate(problem.num_bytes):
            mine = plan.tensor == tensor
            ends = plan.first_byte[mine] + plan.num_bytes[mine]
            assert plan.first_byte[mine].tolist() == pytest.approx([0.0, *ends[:-1]])
            assert ends[-1] == pytest.approx(size)

    @given(problem=PROBLEMS)
    @settings(max_examples=40)
    def test_numbers_its_blocks_from_0_without_gaps(
        self, policy: Policy, problem: WireProblem
    ) -> None:
        plan = policy(problem)
        assert set(np.diff(plan.block, prepend=-1)) <= {0, 1} or not len(plan.block)
        assert plan.num_blocks == len(set(plan.block.tolist()))
        assert plan.block_bytes.sum() == pytest.approx(problem.num_bytes.sum())
        assert plan.block_bytes.shape == (plan.num_blocks,)

    @given(problem=PROBLEMS)
    @settings(max_examples=40)
    def test_is_priced_as_the_simulator_runs_it(self, policy: Policy, problem: WireProblem) -> None:
        plan = policy(problem)
        price_s = step_time_s(problem, plan)
        one_s = simulate(wire_graph(problem, plan)).makespan_s
        if problem.layer.max(initial=0) < len(problem.forward_s):
            assert price_s == pytest.approx(one_s)
        assert price_s >= fluid_bound_s(problem, latency_share=plan.latency_share) * (1 - 1e-9)
        assert fluid_bound_s(problem) >= problem.bound_s

    @given(problem=PROBLEMS)
    @settings(max_examples=20)
    def test_is_priced_at_the_pace_of_many_simulated_steps(
        self, policy: Policy, problem: WireProblem
    ) -> None:
        plan = policy(problem)
        graph = wire_graph(problem, plan, num_steps=60)
        run = simulate(graph)
        # Forward passes end on the main lane; what trails the last one is not of its step.
        ends_s = [run.end_s[(graph.lane == 0) & (graph.step == step)].max() for step in (39, 59)]
        pace_s = (ends_s[1] - ends_s[0]) / 20
        assert pace_s <= step_time_s(problem, plan) * (1 + 1e-9)
        # Where 64 steps do not settle, the price is an upper end that is met later.
        settled = max(pace_s, plan.block_bytes.sum() / problem.link.bytes_per_s)
        settled += plan.num_blocks * (problem.block_cost_s + problem.link.alpha_s)
        assert step_time_s(problem, plan) <= settled + 1e-9

    @given(problem=PROBLEMS)
    @settings(max_examples=20)
    def test_starts_no_block_before_its_gradients_and_no_layer_before_its_blocks(
        self, policy: Policy, problem: WireProblem
    ) -> None:
        plan = policy(problem)
        run = simulate(wire_graph(problem, plan))
        forward = np.arange(len(run) - len(problem.forward_s), len(run))
        latency = forward[0] - 2 * plan.num_blocks + np.arange(plan.num_blocks)
        landed_s = run.end_s[latency + plan.num_blocks]
        for tensor, block in zip(plan.tensor, plan.block, strict=True):
            assert run.start_s[latency[block]] >= problem.ready_s[tensor] - 1e-9
            waits = 0 if plan.waits_for_all else problem.layer[tensor]
            if waits < len(problem.forward_s):
                assert run.start_s[forward[waits]] >= landed_s[block] - 1e-9

    @given(problem=PROBLEMS)
    @settings(max_examples=20)
    def test_lands_what_is_carried_over_before_the_forward_pass_after_the_next(
        self, policy: Policy, problem: WireProblem
    ) -> None:
        plan = policy(problem)
        graph = wire_graph(problem, plan, num_steps=3)
        run = simulate(graph)
        size = len(graph) // 3
        tasks = np.arange(len(graph)).reshape(3, size)
        forward = tasks[:, size - len(problem.forward_s)]
        wire = tasks[:, size - len(problem.forward_s) - plan.num_blocks :][:, : plan.num_blocks]
        late = plan.block[problem.layer[plan.tensor] == len(problem.forward_s)]
        for step in (0, 1):
            starts_s = run.start_s[forward[step + 1]]
            assert (run.end_s[wire[step, late]] <= starts_s + 1e-9).all()

    @given(problem=PROBLEMS)
    @settings(max_examples=20)
    def test_plans_the_same_again(self, policy: Policy, problem: WireProblem) -> None:
        assert policy(problem).digest() == policy(problem).digest()

    def test_has_nothing_to_send_for_layers_without_gradient(self, policy: Policy) -> None:
        problem = problem_of((1.0, 2.0, []), (0.5, 0.5, []))
        plan = policy(problem)
        assert (plan.num_blocks, len(plan.tensor)) == (0, 0)
        assert step_time_s(problem, plan) == simulate(wire_graph(problem, plan)).makespan_s == 4.0

    def test_sends_one_tensor_of_one_layer_after_the_backward_pass(self, policy: Policy) -> None:
        problem = problem_of((1.0, 2.0, [2.0]))
        assert step_time_s(problem, policy(problem)) == 5.0

    @pytest.mark.parametrize("num_in_flight", [1, 2, 3])
    def test_takes_tensors_that_need_no_time_to_compute(
        self, policy: Policy, num_in_flight: int
    ) -> None:
        problem = problem_of((0.0, 0.0, [3.0, 4.0]), (0.0, 0.0, [5.0]), num_in_flight=num_in_flight)
        assert step_time_s(problem, policy(problem)) == 12.0


@pytest.mark.parametrize(("name", "policy"), POLICIES.items(), ids=POLICIES)
def test_only_the_policies_of_a_barrier_wait_for_all(name: str, policy: Policy) -> None:
    if name != "paceline":
        assert policy(TRAINING_LIKE).waits_for_all == (name in WAITS_FOR_ALL)


def test_plans_that_differ_have_different_digests() -> None:
    plans = [policy(TRAINING_LIKE) for name, policy in POLICIES.items() if name != "paceline"]
    assert len({plan.digest() for plan in plans}) == len(plans)


@pytest.mark.parametrize("column", ["tensor", "first_byte", "num_bytes", "block"])
def test_each_column_counts_for_the_digest(column: str) -> None:
    plan = plan_wait_free(TRAINING_LIKE)
    changed = np.array(getattr(plan, column)).copy()
    changed[-1] += 1
    assert replace(plan, **{column: changed}).digest() != plan.digest()
    assert replace(plan, waits_for_all=False).digest() != plan.digest()
    assert replace(plan, name="another").digest() == plan.digest()


def blocks_of(plan: BlockPlan) -> list[list[int]]:
    return [plan.tensor[plan.block == block].tolist() for block in range(plan.num_blocks)]


@pytest.mark.parametrize(
    ("policy", "blocks", "step_s"),
    [
        ("ddp", [[3], [2, 1], [0]], 16.0),
        ("wait-free", [[3], [2], [1], [0]], 16.0),
        ("mg-wfbp", [[3], [2, 1], [0]], 16.0),
        ("prophet", [[3], [0], [1], [2]], 14.0),
        ("p3", [[3], [2], [0], [1], [1], [2], [3]], 13.0),
    ],
)
def test_policies_send_what_one_finds_by_hand(
    policy: str, blocks: list[list[int]], step_s: float
) -> None:
    # Gradients appear at 1, 2, 3, 4 s; 1 byte takes 1 s; each layer computes 1 s forwards.
    problem = problem_of((1, 1, [1]), (1, 1, [4]), (1, 1, [3]), (1, 1, [3]), bytes_per_s=1)
    plan = POLICIES[policy](problem)
    assert blocks_of(plan) == blocks
    assert step_time_s(problem, plan) == step_s


def test_dear_scatters_as_gradients_appear_and_gathers_as_they_are_needed() -> None:
    plan = POLICIES["dear"](TRAINING_LIKE)
    scattered, gathered = np.split(plan.tensor, 2)
    assert scattered.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert gathered.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert plan.latency_share == 0.5
    assert plan.in_halves


def test_a_gather_waits_for_its_scatter() -> None:
    # 1 s of latency per half, 2 s of bytes per half: 1 + 2 + 1 + 2 behind the gradient at 2 s.
    problem = problem_of((1.0, 2.0, [4.0]), alpha_s=2.0, num_in_flight=2)
    assert step_time_s(problem, plan_dear(problem)) == 2.0 + 6.0 + 1.0


def test_halves_can_be_ruled_out() -> None:
    problem = problem_of(*((1.0, 1.0, [4.0]) for _ in range(4)), alpha_s=0.5)
    assert not plan_blocks(problem, in_halves=False).in_halves


def test_what_is_carried_over_fills_the_wire_before_the_first_gradient() -> None:
    # Gradients at 4 s; 4 s of bytes for the layer and 4 s of rows; forward and backward 8 s.
    carried = problem_of((4.0, 4.0, [2.0, 4.0]), num_carried=1)
    plan = plan_wait_free(carried)
    late = replace(plan, tensor=plan.tensor[::-1], num_bytes=plan.num_bytes[::-1], block=plan.block)
    free = replace(late, waits_for_all=False)
    # The rows are sent from 6 s to 10 s, which ends with the forward pass: a step of 10 s.
    assert step_time_s(carried, free) == 10.0
    assert step_time_s(carried, late) == 14.0


def test_a_wire_that_carries_more_than_it_can_sets_the_pace() -> None:
    carried = problem_of((1.0, 1.0, [1.0, 9.0]), num_carried=1)
    plan = BlockPlan.from_parts("rows last", carried, [0, 1], [1.0, 9.0], [0, 1])
    assert step_time_s(carried, plan) == pytest.approx(10.0)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        wire_graph(TRAINING_LIKE, plan_ddp(TRAINING_LIKE), num_steps=0)


def test_priority_lets_the_first_layer_overtake() -> None:
    # Both tensors are ready at once, and layer 0 is needed first.
    problem = problem_of((1, 0, [1]), (1, 1, [3]))
    for policy in ("p3", "bytescheduler", "prophet", "paceline"):
        assert POLICIES[policy](problem).tensor[0] == 0


@given(problem=PROBLEMS)
@settings(max_examples=60)
def test_ours_is_never_worse_than_any_baseline(problem: WireProblem) -> None:
    best_s = step_time_s(problem, plan_blocks(problem))
    assert all(best_s <= step_time_s(problem, plan) for plan in baseline_plans(problem))


def all_whole_plans(problem: WireProblem) -> Iterator[BlockPlan]:
    """Every order of whole tensors, cut into blocks in every way."""
    count = len(problem.num_bytes)
    cuts = [cut for size in range(count) for cut in combinations(range(1, count), size)]
    for order in permutations(range(count)):
        for cut in cuts:
            block = np.searchsorted(cut, np.arange(count), side="right")
            yield BlockPlan.from_parts(
                "brute force", problem, order, problem.num_bytes[list(order)], block
            )


@given(problem=TINY)
@settings(max_examples=100, derandomize=True)
def test_ours_is_near_the_best_of_all_plans_of_whole_tensors(problem: WireProblem) -> None:
    best_s = min(step_time_s(problem, plan) for plan in all_whole_plans(problem))
    assert step_time_s(problem, plan_blocks(problem)) <= 1.05 * best_s


def test_parts_that_do_not_make_up_a_tensor_are_refused() -> None:
    problem = problem_of((1, 1, [4]), (1, 1, [2]))
    with pytest.raises(ValueError, match="parts of tensor 0 must make up 4 bytes, got 3"):
        BlockPlan.from_parts("short", problem, [0, 1], [3.0, 2.0], [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_cost_s": -1.0}, "block_cost_s must be finite and not negative, got -1"),
        ({"num_in_flight": 0}, "num_in_flight must be at least 1, got 0"),
        ({"num_bytes": np.array([1.0, 0.0])}, "num_bytes must be positive"),
        ({"layer": np.array([0, 3])}, r"layer must lie in \[0, 2\], got 0 to 3"),
        ({"layer": np.array([1, 0])}, "must be sorted by the layer"),
    ],
)
def test_a_problem_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(problem_of((1, 1, [4]), (1, 1, [2])), **change)


@pytest.mark.parametrize("policy", [plan_p3, plan_bytescheduler], ids=["p3", "bytescheduler"])
def test_slices_of_no_size_are_refused(policy: Callable[..., BlockPlan]) -> None:
    key = "slice_bytes" if policy is plan_p3 else "partition_bytes"
    with pytest.raises(ValueError, match="slices must have a positive size, got 0"):
        policy(TRAINING_LIKE, **{key: 0.0})


def test_a_job_gives_a_tensor_per_layer_with_gradient() -> None:
    layers = tuple(
        LayerCost(name=str(number), forward_s=1.0, backward_s=2.0 + number, gradient_bytes=size)
        for number, size in enumerate((8, 0, 4))
    )
    job = Job(source="predicted", layers=layers, link=Link(0.5, 2.0))
    problem = WireProblem.from_job(job, num_in_flight=2)
    assert problem.layer.tolist() == [0, 2]
    assert problem.num_bytes.tolist() == [8.0, 4.0]
    assert problem.ready_s.tolist() == [9.0, 4.0]
    assert (problem.backward_s, problem.num_in_flight, problem.bound_s) == (9.0, 2, 12.0)
    with pytest.raises(ValueError, match="a job without a link"):
        WireProblem.from_job(replace(job, link=None))


@each_policy
@pytest.mark.parametrize("num_in_flight", [1, 2])
def test_each_block_holds_the_wire_for_what_it_costs_the_host(
    policy: Policy, num_in_flight: int
) -> None:
    free = problem_of((0.0, 0.0, [3.0]), (0.0, 0.0, [5.0]), num_in_flight=num_in_flight)
    dear = replace(free, block_cost_s=0.5)
    plan = policy(dear)
    assert step_time_s(dear, plan) == step_time_s(free, plan) + 0.5 * plan.num_blocks


@each_policy
@given(problem=PROBLEMS)
@settings(max_examples=20)
def test_costlier_blocks_never_make_a_plan_faster(policy: Policy, problem: WireProblem) -> None:
    plan = policy(problem)
    prices = [step_time_s(replace(problem, block_cost_s=cost), plan) for cost in (0.0, 0.25, 1.0)]
    assert prices == sorted(prices)


def test_costlier_blocks_are_fewer() -> None:
    counts = [
        plan_blocks(replace(TRAINING_LIKE, block_cost_s=cost)).num_blocks for cost in (0.0, 1.0)
    ]
    assert counts[1] < counts[0]


@pytest.mark.parametrize("num_in_flight", [2, 3])
def test_more_collectives_in_flight_overlap_latency(num_in_flight: int) -> None:
    problem = replace(TRAINING_LIKE, num_in_flight=num_in_flight)
    plans = (step_time_s(each, plan_wait_free(each)) for each in (problem, TRAINING_LIKE))
    assert all(faster < slower for faster, slower in pairwise(plans))


@given(problem=PROBLEMS)
@settings(max_examples=60)
def test_tiny_slices_by_priority_reach_the_fluid_bound(problem: WireProblem) -> None:
    # Without latency and with every gradient in pieces, the most urgent first is optimal.
    free = replace(
        problem, link=replace(problem.link, alpha_s=0.0), num_in_flight=1, block_cost_s=0.0
    )
    slice_bytes = max(1.0, float(free.num_bytes.sum())) / 2000
    found_s = step_time_s(free, plan_p3(free, slice_bytes=slice_bytes))
    slack_s = slice_bytes / free.link.bytes_per_s
    assert fluid_bound_s(free) - 1e-9 <= found_s <= fluid_bound_s(free) + 2 * slack_s + 1e-9


@pytest.mark.parametrize(("cap_mb", "first"), [(1, 1), (2, 2), (25, 1)])
def test_only_the_default_cap_has_a_smaller_first_bucket(cap_mb: int, first: int) -> None:
    problem = replace(TRAINING_LIKE, num_bytes=np.full(len(TRAINING_LIKE.num_bytes), 2.0**18))
    plan = plan_ddp_cap(problem, cap_mb)
    assert plan.block_bytes[0] <= first << 20
    assert plan.block_bytes[0] == min(first << 20, problem.num_bytes.sum())
