"""Task graphs: dependencies by tensors, bounds, and what cannot run."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import GraphError
from paceline.overlap import Task, lane_graph
from paceline.timeline import Kind, simulate

LANES = ("main", "assist", "comm")


def task(name: str, lane: str = "main", reads: str = "", writes: str = "", **more: object) -> Task:
    return Task(
        name=name,
        lane=lane,
        duration_s=1.0,
        reads=tuple(reads),
        writes=tuple(writes),
        **more,  # type: ignore[arg-type]  # of the dataclass
    )


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        pytest.param({"writes": "t"}, {"reads": "t"}, True, id="read after write"),
        pytest.param({"reads": "t"}, {"writes": "t"}, True, id="write after read"),
        pytest.param({"writes": "t"}, {"writes": "t"}, True, id="write after write"),
        pytest.param({"reads": "t"}, {"reads": "t"}, False, id="two readers"),
        pytest.param({"writes": "t"}, {"reads": "u"}, False, id="other tensors"),
    ],
)
def test_a_task_waits_for_what_the_tensors_demand(
    first: dict[str, str], second: dict[str, str], waits: bool
) -> None:
    graph = lane_graph([task("a", **first), task("b", "assist", **second)], lanes=LANES)
    assert simulate(graph).start_s.tolist() == [0.0, 1.0 if waits else 0.0]


def test_a_writer_waits_for_all_readers_since_the_last_write() -> None:
    tasks = [task("r0", "assist", "t"), task("r1", "comm", "t"), task("w", "main", "", "t")]
    graph = lane_graph(tasks, lanes=LANES)
    assert sorted(zip(graph.before.tolist(), graph.after.tolist(), strict=True)) == [(0, 2), (1, 2)]


def test_after_may_name_a_task_that_is_listed_later() -> None:
    graph = lane_graph([task("a", after=("b",)), task("b", "assist")], lanes=LANES)
    assert simulate(graph).start_s.tolist() == [1.0, 0.0]


def test_a_bound_holds_the_first_lane_back() -> None:
    def tasks() -> list[Task]:
        made = []
        for layer in range(4):
            made.append(Task(name=f"x{layer}", lane="main", duration_s=1.0, writes=(f"g{layer}",)))
            made.append(Task(name=f"w{layer}", lane="assist", duration_s=3.0, reads=(f"g{layer}",)))
        return made

    free = simulate(lane_graph(tasks(), lanes=LANES))
    tight = simulate(lane_graph(tasks(), lanes=LANES, max_pending={"assist": 1}))
    assert free.start_s[6] == 3.0  # Main runs through.
    # The third input gradient waits until the first weight gradient has ended.
    assert tight.start_s[[0, 2, 4, 6]].tolist() == [0.0, 1.0, 4.0, 7.0]


def test_a_cycle_is_found_and_named() -> None:
    tasks = [task("a", reads="t", after=("b",)), task("b", "assist", reads="u", after=("a",))]
    with pytest.raises(GraphError, match="'a' waits for 'b' waits for 'a'"):
        lane_graph(tasks, lanes=LANES)


def test_the_order_of_a_lane_counts_in_a_cycle() -> None:
    tasks = [task("a", after=("c",)), task("b"), task("c", "assist", after=("b",))]
    with pytest.raises(GraphError, match="can never start"):
        lane_graph(tasks, lanes=LANES)


def test_two_unordered_writers_are_both_named() -> None:
    with pytest.raises(GraphError, match=r"'t' is written by 'a' and by 'b'"):
        lane_graph([task("a", writes="t")], [task("b", "assist", writes="t")], lanes=LANES)


def test_writers_of_two_programs_may_be_ordered() -> None:
    programs = [task("a", writes="t")], [task("b", "assist", writes="t", after=("a",))]
    assert simulate(lane_graph(*programs, lanes=LANES)).start_s.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("unordered", ["a", "b", "c"])
def test_of_three_writers_the_one_that_nothing_orders_is_named(unordered: str) -> None:
    after = {"a": (), "b": ("a",), "c": ("a", "b")}
    chain = {name: tuple(x for x in names if x != unordered) for name, names in after.items()}
    chain[unordered] = ()
    lanes = ("main", "assist", "comm")
    programs = [
        [task(n, lane, writes="t", after=chain[n])] for n, lane in zip("abc", lanes, strict=True)
    ]
    with pytest.raises(GraphError, match=f"is written by .*'{unordered}'"):
        lane_graph(*programs, lanes=lanes)


@pytest.mark.parametrize("names", list(permutations("abc")))
def test_writers_may_be_ordered_whatever_program_lists_them_first(names: tuple[str, ...]) -> None:
    after = {"a": (), "b": ("a",), "c": ("b",)}
    lanes = ("main", "assist", "comm")
    programs = [
        [task(n, lane, writes="t", after=after[n])] for n, lane in zip(names, lanes, strict=True)
    ]
    starts = simulate(lane_graph(*programs, lanes=lanes)).start_s.tolist()
    assert dict(zip(names, starts, strict=True)) == {"a": 0.0, "b": 1.0, "c": 2.0}


def test_a_program_reads_what_only_another_one_writes() -> None:
    programs = [task("b", "assist", reads="t")], [task("a", writes="t")]
    assert simulate(lane_graph(*programs, lanes=LANES)).start_s.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (task("a", "assit"), "task 'a' is for lane 'assit', which does not exist"),
        (task("a", after=("z",)), "'a' comes after 'z', which must name one task, but 0"),
    ],
)
def test_what_does_not_exist_is_named(wrong: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lane_graph([wrong], lanes=LANES)


def test_a_bound_for_a_lane_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ValueError, match="max_pending names lane 'copy'"):
        lane_graph([task("a")], lanes=LANES, max_pending={"copy": 1})


def test_columns_arrive_in_the_graph() -> None:
    made = Task(name="a", lane="comm", duration_s=2.0, kind=Kind.COLLECTIVE, step=3, collective=5)
    span = simulate(lane_graph([made], lanes=LANES))[0]
    assert (span.lane, span.kind, span.step, span.collective) == ("comm", Kind.COLLECTIVE, 3, 5)


tensors = st.sets(st.sampled_from("tuvw"), max_size=2).map(lambda found: "".join(sorted(found)))
programs = st.lists(
    st.tuples(st.sampled_from(LANES), tensors, tensors, st.floats(0.0, 2.0)), max_size=24
)


@given(programs)
def test_every_pair_that_conflicts_keeps_its_order(
    rows: list[tuple[str, str, str, float]],
) -> None:
    tasks = [
        Task(name=str(n), lane=lane, duration_s=seconds, reads=tuple(reads), writes=tuple(writes))
        for n, (lane, reads, writes, seconds) in enumerate(rows)
    ]
    run = simulate(lane_graph(tasks, lanes=LANES))
    for b, later in enumerate(tasks):
        for a, earlier in enumerate(tasks[:b]):
            touched = {*later.reads, *later.writes}
            if set(earlier.writes) & touched or set(earlier.reads) & set(later.writes):
                assert run.start_s[b] >= run.end_s[a]


def test_what_one_program_orders_is_ordered_whatever_comes_before_it() -> None:
    other = [task("p0", "comm"), task("p1", "comm"), task("p2", "comm")]
    mine = [task("w", "main", writes="t"), task("r", "assist", reads="t")]
    graph = lane_graph(other, mine, lanes=LANES)
    assert (3, 4) in set(zip(graph.before.tolist(), graph.after.tolist(), strict=True))


def test_a_bound_counts_in_its_own_program_whatever_comes_before_it() -> None:
    other = [task("p0", "comm"), task("p1", "comm"), task("p2", "comm")]
    mine = [task(f"w{i}", "assist") for i in range(2)] + [task("m", "main")]
    graph = lane_graph(other, mine, lanes=LANES, max_pending={"assist": 1})
    assert set(zip(graph.before.tolist(), graph.after.tolist(), strict=True)) == {(3, 5)}


def test_a_name_that_two_tasks_have_is_no_place_to_wait_for() -> None:
    with pytest.raises(ValueError, match="must name one task, but 2 have that name"):
        lane_graph([task("a"), task("a"), task("b", after=("a",))], lanes=LANES)


def test_a_task_takes_no_time_unless_told() -> None:
    assert Task(name="a", lane="main").duration_s == 0.0
