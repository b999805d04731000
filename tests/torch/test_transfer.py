"""The worker thread that both executors are given, and what is waited for."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from paceline.errors import TransferError
from paceline.torch.comm.transfer import (
    Payload,
    PendingUpdates,
    Piece,
    Trained,
    WaitRequest,
    Worker,
    _worker,
)

CPU = torch.device("cpu")


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(CPU, "a worker")
    yield made
    made.close(lambda: True)
    assert "a worker" not in [thread.name for thread in threading.enumerate()]


def test_submitted_tasks_run_one_after_another_without_gradients(worker: Worker) -> None:
    found: list[object] = []
    worker.start()
    for number in range(100):
        worker.submit(lambda number=number: found.append(number))  # type: ignore[misc]
    worker.submit(lambda: found.append(torch.is_grad_enabled()))
    worker.submit(lambda: found.append(worker.is_current))
    worker.wait(lambda: worker.is_idle)
    assert found == [*range(100), False, True]
    assert not worker.is_current


def test_a_chosen_task_runs_as_soon_as_there_is_one(worker: Worker) -> None:
    found: list[int] = []
    tasks = iter([lambda: found.append(1), None, lambda: found.append(2), None])
    worker.start(lambda: next(tasks, None))
    worker.wait(lambda: found == [1])
    with worker.condition:
        worker.condition.notify_all()
    worker.wait(lambda: found == [1, 2])


def test_an_error_is_raised_by_every_wait_once_it_is_prepared(worker: Worker) -> None:
    seen: list[object] = []
    worker.start(before_error=lambda: seen.append(worker.error))
    worker.submit(lambda: [][1])
    for _ in range(2):
        with pytest.raises(IndexError):
            worker.wait(lambda: False)
    assert seen == [None]


def test_closing_ends_the_thread_and_who_waits_on_is_told(worker: Worker) -> None:
    worker.start()
    done = threading.Event()
    worker.submit(done.set)
    worker.close(lambda: worker.is_idle)
    assert done.is_set()
    assert not worker._thread.is_alive()
    worker.close(lambda: False)
    worker.wait(lambda: True)
    with pytest.raises(RuntimeError, match="the model is closed; wrap it anew"):
        worker.wait(lambda: False)


def test_a_task_may_close_its_own_worker(worker: Worker) -> None:
    worker.start()
    worker.submit(lambda: worker.close(lambda: False))
    worker._thread.join(5)
    assert not worker._thread.is_alive()


def test_closing_does_not_wait_for_ever(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "CLOSE_TIMEOUT_S", 0.01)
    worker.start()
    worker.close(lambda: False)
    assert not worker._thread.is_alive()


def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setattr("torch.distributed.get_rank", lambda _: 3)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda _: 4)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(0))]
    return Trained([*parameters, nn.Parameter(torch.zeros(1))], "abc", None)  # type: ignore[arg-type]


def test_only_pending_parameters_are_waited_for(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = PendingUpdates(trained(monkeypatch), worker)
    worker.start()
    pending.wait([0, 1, 2])
    pending.begin()
    assert pending.num == 2
    pending.wait([1])
    worker.submit(lambda: pending.end([2]))
    pending.wait([2])
    worker.submit(lambda: pending.end([0]))
    pending.wait([0, 1, 2])
    assert pending.num == 0


def test_a_failure_names_the_rank_the_block_and_its_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = trained(monkeypatch)
    several = Payload.of(5, [Piece(0, 0, 1), Piece(2, 0, 1), Piece(0, 1, 2)])
    for payload, shown in ((several, "a to c"), (Payload.of(5, [Piece(2, 0, 1)]), "c")):
        with (
            pytest.raises(TransferError, match=rf"rank 3: block 5 of 7 \({shown}\).*\(gone\)"),
            found.sending(payload, 7),
        ):
            raise RuntimeError("gone")


def test_a_request_is_taken_once() -> None:
    request = WaitRequest(is_asked=True)
    assert not request.take()
    assert request.is_asked
    request.is_heard = True
    assert [request.take(), request.take()] == [True, False]
    assert not request.is_asked
