"""A guard in a single process: what it refuses, follows, logs and leaves behind."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import paceline.torch
from paceline.errors import RankStalledError
from paceline.torch import Guard, guard
from paceline.torch.guard._progress import PHASES, Progress

X = torch.ones(2, 4)


def layer_and_optimizer() -> tuple[nn.Linear, torch.optim.Optimizer]:
    layer = nn.Linear(4, 1)
    return layer, torch.optim.SGD(layer.parameters(), lr=0.1)


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    return [
        len(model._forward_hooks),
        len(model._forward_pre_hooks),
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
    ]


def test_the_function_and_its_room_share_a_name() -> None:
    from paceline.torch.guard import Guard as SameGuard

    assert callable(paceline.torch.guard)
    assert SameGuard is Guard


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be a whole number of steps, at least 1, got 0"),
        ({"every": 2.5}, "every must be a whole number of steps, at least 1, got 2.5"),
        ({"patience_s": 0.0}, "patience_s must be positive, got 0.0"),
        ({"abort_s": 5.0}, r"abort_s must be at least patience_s \(60\), got 5.0"),
        ({"ignore": ["wight"]}, "ignore must name parameters or buffers .* got 'wight'"),
        ({"data": [1, 2]}, "data must be a loader or sampler .* got list"),
    ],
)
def test_misuse_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    model, optimizer = layer_and_optimizer()
    with pytest.raises(ValueError, match=message) as raised, guard(model, optimizer, **arguments):
        pass
    assert "\n" not in str(raised.value)
    assert hooks_of(model, optimizer) == [0, 0, 0, 0]


def test_the_optimizer_of_another_model_is_refused() -> None:
    (model, _), (_, optimizer) = layer_and_optimizer(), layer_and_optimizer()
    message = "none of its 2 is one of the model's"
    with pytest.raises(ValueError, match=message), guard(model, optimizer):
        pass


@pytest.mark.parametrize("error", [None, ArithmeticError, KeyboardInterrupt])
def test_nothing_is_left_after_the_block(error: type[BaseException] | None) -> None:
    model, optimizer = layer_and_optimizer()
    before = set(threading.enumerate())

    def run() -> None:
        with guard(model, optimizer, every=1):
            assert len(set(threading.enumerate()) - before) == 1
            output = model(X).sum()
            if error is not None:
                raise error
            output.backward()
            optimizer.step()

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert set(threading.enumerate()) == before
    assert hooks_of(model, optimizer) == [0, 0, 0, 0]


def test_progress_follows_the_loop() -> None:
    model, optimizer = layer_and_optimizer()
    places = []
    progress = Progress(lambda step: places.append(f"compare {step}"))

    def look(*_: object) -> None:
        places.append(str(progress.now[0]))

    progress.attach(model, optimizer)
    optimizer.register_step_pre_hook(look)
    model.register_forward_pre_hook(look)
    look()
    for _ in range(2):
        output = model(X)
        look()
        output.register_hook(look)
        output.sum().backward()
        look()
        optimizer.step()
        look()
    with torch.no_grad():
        model(X)
    progress.remove_hooks()
    step = [PHASES[number] for number in (1, 2, 3, 5, 6)]
    first, second = ([f"step {number}, {phase}" for phase in step] for number in (1, 2))
    between = [f"step {number}, {PHASES[0]}" for number in (1, 2, 3)]
    expected = [between[0], *first, "compare 1", between[1], *second, "compare 2", between[2]]
    assert places == [*expected, between[2]]


def test_a_process_alone_logs_where_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = layer_and_optimizer()
    told = threading.Event()
    with caplog.at_level(logging.WARNING, "paceline.guard"):
        logging.getLogger("paceline.guard").addFilter(telling := told_by(told))
        with guard(model, optimizer, patience_s=0.1) as guarded:
            assert told.wait(30.0)
            model(X).sum().backward()
            optimizer.step()
        logging.getLogger("paceline.guard").removeFilter(telling)
    assert guarded.num_steps == 1
    text = caplog.records[0].getMessage()
    assert text.startswith("rank 0 has waited 0.")
    assert text.endswith("for the end of step 1 (before forward, waiting for data)")


def told_by(event: threading.Event) -> Callable[[logging.LogRecord], bool]:
    def tell(_record: logging.LogRecord) -> bool:
        event.set()
        return True

    return tell


def test_a_wait_in_python_is_interrupted_after_abort_s() -> None:
    model, optimizer = layer_and_optimizer()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with (
            pytest.raises(RankStalledError, match=r"ended after abort_s \(0.2 s\)"),
            guard(model, optimizer, patience_s=0.1, abort_s=0.2),
        ):
            threading.Event().wait(60.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert hooks_of(model, optimizer) == [0, 0, 0, 0]
