"""Batches come in order, ahead of use, and what the loader raises comes out."""

from collections.abc import Iterator

import pytest
import torch

from paceline.errors import TaskError
from paceline.timeline import Kind
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap._prefetch import LOAD, WAIT, Prefetch


def batches(number: int) -> list[dict[str, torch.Tensor]]:
    return [{"x": torch.full((2,), float(index))} for index in range(number)]


@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize("num_ahead", [1, 3])
def test_batches_come_in_order_in_every_pass(number: int, num_ahead: int) -> None:
    with Lanes() as lanes:
        ahead = Prefetch(batches(number), lanes, num_ahead=num_ahead)
        for _ in range(2):
            assert [batch["x"][0].item() for batch in ahead] == [float(i) for i in range(number)]


def test_the_next_batch_is_loaded_before_it_is_asked_for() -> None:
    begun: list[int] = []

    def loader() -> Iterator[int]:
        for number in range(4):
            begun.append(number)
            yield number

    with Lanes() as lanes:
        steps = iter(Prefetch(loader(), lanes))
        assert next(steps) == 0
        lanes.flush()
        assert begun == [0, 1]
        assert list(steps) == [1, 2, 3]


def test_loading_and_waiting_are_spans() -> None:
    with Lanes() as lanes:
        list(Prefetch(batches(3), lanes))
        lanes.flush()
        found = [(span.name, span.lane, span.kind) for span in lanes.timeline()]
    assert found.count((WAIT, "main", Kind.DATA)) == 4
    assert found.count((LOAD, "copy", Kind.DATA)) == 4


def test_what_the_loader_raises_comes_out_where_the_batch_is_asked_for() -> None:
    def loader() -> Iterator[int]:
        yield 0
        raise OSError("the disk is gone")

    with Lanes() as lanes:
        steps = iter(Prefetch(loader(), lanes))
        assert next(steps) == 0
        with pytest.raises(TaskError, match=r"'load batch'.*the disk is gone"):
            next(steps)


def test_leaving_early_leaves_nothing_running() -> None:
    with Lanes() as lanes:
        for batch in Prefetch(batches(10), lanes, num_ahead=4):
            assert batch["x"][0] == 0.0
            break


def test_the_number_ahead_is_checked() -> None:
    with Lanes() as lanes, pytest.raises(ValueError, match="num_ahead must be at least 1, got 0"):
        Prefetch([], lanes, num_ahead=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_on_the_device() -> None:
    with Lanes(device="cuda") as lanes:
        found = [batch["x"] for batch in Prefetch(batches(5), lanes, device="cuda")]
    assert all(x.is_cuda for x in found)
    assert [x[0].item() for x in found] == [0.0, 1.0, 2.0, 3.0, 4.0]
