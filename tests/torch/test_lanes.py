"""The executor: dependencies, errors, cancelling, ending, spans."""

import gc
import random
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import GraphError, TaskError
from paceline.overlap import Lane
from paceline.timeline import Kind
from paceline.torch.overlap._lanes import Lanes

NAMES = ("assist", "comm", "copy", "host")


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    num_before = threading.active_count()
    with Lanes() as made:
        yield made
    assert threading.active_count() == num_before


class Gate:
    """A task that blocks its lane until it is opened."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.opened.wait(30)


def fail() -> None:
    raise ValueError("no such batch")


def test_a_handle_stands_for_its_result(lanes: Lanes) -> None:
    two = lanes.submit(torch.add, torch.ones(1), 1.0)
    six = lanes.submit(torch.mul, two, 3.0, lane="copy")
    assert six.wait().item() == 6.0
    assert two.is_done
    assert (six.name, six.lane) == ("mul", "copy")


def test_dependencies_follow_from_the_tensors(lanes: Lanes) -> None:
    gate, x = Gate(), torch.zeros(4)
    order: list[str] = []

    def write() -> None:
        gate()
        x.fill_(1.0)

    lanes.submit(write, writes=[x])
    read = lanes.submit(lambda: order.append(f"read {x.sum().item()}"), lane="copy", reads=[x[1:]])
    lanes.submit(lambda: x.fill_(2.0), lane="host", writes=[x.view(2, 2)])
    free = lanes.submit(lambda: order.append("free"), lane="comm")
    free.wait()
    assert not read.is_done
    gate.opened.set()
    lanes.flush()
    assert order == ["free", "read 4.0"]
    assert x.tolist() == [2.0] * 4


def test_tasks_run_without_autograd_and_with_their_own_threads() -> None:
    with Lanes({"a": Lane(num_threads=1), "b": Lane(num_threads=3)}) as lanes:
        assert lanes.submit(torch.get_num_threads, lane="a").wait() == 1
        assert lanes.submit(torch.get_num_threads, lane="b").wait() == 3
        assert not lanes.submit(torch.is_grad_enabled, lane="a").wait()


def test_an_error_names_the_task_and_the_line_that_submitted_it(lanes: Lanes) -> None:
    lanes.submit(fail, name="load 3")
    line = fail.__code__.co_filename
    with pytest.raises(
        TaskError, match=rf"'load 3' \(lane 'assist', .*{line}:\d+\): ValueError: no"
    ) as found:
        lanes.flush()
    assert isinstance(found.value.__cause__, ValueError)
    lanes.flush()  # It is told once.


def test_tasks_that_need_a_failed_one_fail_and_others_go_on(lanes: Lanes) -> None:
    bad = lanes.submit(fail)
    after = lanes.submit(str, bad, lane="copy")
    assert lanes.submit(str, 1, lane="copy").wait() == "1"
    with pytest.raises(TaskError, match="not run, because 'fail'"):
        after.wait()
    with pytest.raises(TaskError, match="no such batch"):
        bad.wait()
    lanes.flush()


def test_closing_tells_of_errors_that_nobody_waited_for() -> None:
    lanes = Lanes()
    lanes.submit(fail)
    with pytest.raises(TaskError, match="no such batch"):
        lanes.close()


def test_what_has_not_begun_can_be_cancelled(lanes: Lanes) -> None:
    gate, done = Gate(), []
    running = lanes.submit(gate)
    assert gate.begun.wait(30)
    one = lanes.submit(done.append, 1)
    needs = lanes.submit(str, one)
    lanes.submit(done.append, 2)
    assert one.cancel()
    assert not one.cancel()
    assert not running.cancel()
    assert lanes.cancel() == 2
    gate.opened.set()
    lanes.flush()
    assert done == []
    for handle in (one, needs):
        with pytest.raises(TaskError, match="cancelled"):
            handle.wait()


def test_an_error_in_the_block_cancels_what_has_not_begun() -> None:
    gate, done = Gate(), []

    class OpensOnceCancelled(Lanes):
        def cancel(self) -> int:
            num_cancelled = super().cancel()
            gate.opened.set()
            return num_cancelled

    def block() -> None:
        with OpensOnceCancelled() as lanes:
            lanes.submit(gate)
            assert gate.begun.wait(30)
            lanes.submit(done.append, 1)
            raise KeyError("of the block")

    with pytest.raises(KeyError):
        block()
    assert done == []


def test_submission_after_close_is_an_error() -> None:
    lanes = Lanes()
    lanes.close()
    with pytest.raises(RuntimeError, match=r"'fail' .* was submitted after close"):
        lanes.submit(fail)


def test_a_lane_that_does_not_exist_is_an_error(lanes: Lanes) -> None:
    with pytest.raises(ValueError, match="lane 'asist' does not exist; the lanes are assist, comm"):
        lanes.submit(fail, lane="asist")
    with pytest.raises(ValueError, match="at least one lane"):
        Lanes({})


def test_a_task_must_not_wait(lanes: Lanes) -> None:
    first = lanes.submit(str, 1)
    with pytest.raises(TaskError, match="must not wait for 'str'"):
        lanes.submit(first.wait, lane="copy").wait()
    with pytest.raises(TaskError, match="must not wait"):
        lanes.submit(lanes.flush).wait()


def test_two_threads_that_write_one_tensor_are_named(lanes: Lanes) -> None:
    gate, x = Gate(), torch.zeros(1)
    first = lanes.submit(gate, name="a", writes=[x])
    with ThreadPoolExecutor(1) as other:

        def submit(**more: object) -> object:
            return lanes.submit(x.add_, 1.0, name="b", lane="copy", writes=[x], **more)

        with pytest.raises(GraphError, match=r"written by 'a' .* and by 'b' .* nothing orders"):
            other.submit(submit).result()
        other.submit(submit, after=[first]).result()
    gate.opened.set()
    lanes.flush()
    assert x.item() == 1.0


def test_a_bound_makes_submission_wait() -> None:
    gate = Gate()
    with Lanes({"assist": Lane(max_pending=2)}) as lanes:
        lanes.submit(gate)
        lanes.submit(str, 1)
        third: list[object] = []
        thread = threading.Thread(target=lambda: third.append(lanes.submit(str, 2)))
        thread.start()
        assert gate.begun.wait(30)
        assert not third
        gate.opened.set()
        thread.join()
        assert third


def test_the_calling_thread_can_help(lanes: Lanes) -> None:
    gate, threads = Gate(), []
    lanes.submit(gate)
    assert gate.begun.wait(30)
    for _ in range(3):
        lanes.submit(lambda: threads.append(threading.get_ident()))
    assert lanes.help("assist", most=1) == 1
    assert lanes.help("assist") == 2
    assert set(threads) == {threading.get_ident()}
    gate.opened.set()


def test_every_task_leaves_a_span(lanes: Lanes) -> None:
    lanes.step = 7
    lanes.submit(str, 1, name="a", kind=Kind.COPY, lane="copy")
    lanes.submit(str, 1, name="b").wait()
    lanes.flush()
    run = lanes.timeline()
    assert run.source == "measured"
    assert {(s.name, s.lane, s.kind, s.step) for s in run} == {
        ("a", "copy", Kind.COPY, 7),
        ("b", "assist", Kind.COMPUTE, 7),
    }


def test_the_spans_kept_are_bounded() -> None:
    with Lanes(max_spans=3) as lanes:
        for number in range(5):
            lanes.submit(str, number, name=str(number))
        lanes.flush()
        assert [span.name for span in lanes.timeline()] == ["2", "3", "4"]


def test_forgotten_lanes_end_their_threads() -> None:
    num_before = threading.active_count()
    lanes = Lanes()
    lanes.submit(str, 1).wait()
    del lanes
    gc.collect()
    assert threading.active_count() == num_before


def test_results_live_as_long_as_their_handles(lanes: Lanes) -> None:
    x = torch.zeros(8)
    handle = lanes.submit(torch.add, x, 1.0, writes=[x])
    result, source = weakref.ref(handle.wait()), weakref.ref(x)
    lanes.flush()
    del handle, x
    gc.collect()
    assert result() is None
    assert source() is None


accesses = st.tuples(
    st.sampled_from(NAMES),
    st.sets(st.integers(0, 5), max_size=2),
    st.sets(st.integers(0, 5), max_size=2),
)


@given(st.lists(accesses, max_size=60))
@settings(max_examples=25)
def test_every_dependency_holds(rows: list[tuple[str, set[int], set[int]]]) -> None:
    check_program(rows)


def test_100_000_tasks_on_four_lanes() -> None:
    draw = random.Random(0)
    rows = [
        (
            draw.choice(NAMES),
            set(draw.sample(range(64), draw.randrange(3))),
            set(draw.sample(range(64), draw.randrange(2))),
        )
        for _ in range(100_000)
    ]
    check_program(rows)


def check_program(rows: list[tuple[str, set[int], set[int]]]) -> None:
    """Let every task read versions and raise them; they must be those of running in order."""
    tensors = [torch.zeros(1) for _ in range(64)]
    version, expected = [0] * 64, [0] * 64
    seen: list[list[int]] = [[] for _ in rows]

    def run(number: int, reads: set[int], writes: set[int]) -> None:
        seen[number] = [version[tensor] for tensor in (*sorted(reads), *sorted(writes))]
        for tensor in writes:
            version[tensor] += 1

    wanted = []
    with Lanes() as lanes:
        for number, (lane, reads, writes) in enumerate(rows):
            wanted.append([expected[tensor] for tensor in (*sorted(reads), *sorted(writes))])
            for tensor in writes:
                expected[tensor] += 1
            lanes.submit(
                run,
                number,
                reads,
                writes,
                lane=lane,
                reads=[tensors[tensor] for tensor in reads],
                writes=[tensors[tensor] for tensor in writes],
            )
        lanes.flush()
        assert len(lanes.timeline()) == len(rows)
    assert seen == wanted
    assert version == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_hold_dependencies_and_can_be_captured() -> None:
    x = torch.zeros(1 << 20, device="cuda")
    with Lanes(device="cuda") as lanes:
        for _ in range(20):
            lanes.submit(x.add_, 1.0, writes=[x])
            lanes.submit(x.mul_, 1.0, lane="copy", writes=[x])
        total = lanes.submit(x.sum, lane="comm", reads=[x])
        assert total.wait().item() == 20.0 * len(x)
        lanes.flush()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            lanes.submit(x.add_, 1.0, writes=[x])
            lanes.submit(x.mul_, 2.0, lane="copy", writes=[x])
            lanes.flush()
        graph.replay()
        torch.cuda.synchronize()
        assert x[0].item() == 42.0
