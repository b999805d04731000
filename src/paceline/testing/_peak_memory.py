"""Measure what a training step holds at its peak, by the account of the CPU's allocator."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from paceline.torch.predict import ExampleInput, StepSetup, build, inputs_for

NUM_WARM_UP_STEPS = 2
MEASURED_STEP = "paceline.measured_step"


def measure_peak_bytes(
    build_model: Callable[[], nn.Module], example_input: ExampleInput, setup: StepSetup
) -> int:
    """Return the most bytes that the third training step holds at once.

    PyTorch's profiler notes every allocation and release from the making of the model on, so
    that weights, inputs and the optimizer's state count, and kernels' own scratch that comes
    from PyTorch's allocator. Gradients are freed before each step.

    Args:
        build_model: Makes the model, on the CPU.
        example_input: As for `trace_workload`.
        setup: Batch size, precision, optimizer and loss.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model, shaped_like = build(build_model, example_input)
        model = setup.prepared(model)
        inputs = inputs_for(shaped_like, None, setup.batch_size)
        optimizer = setup.make_optimizer(model)
        for _ in range(NUM_WARM_UP_STEPS):
            setup.train(model, inputs, optimizer)
        with record_function(MEASURED_STEP):
            setup.train(model, inputs, optimizer)
    return _peak_inside(profiler, MEASURED_STEP)


def _peak_inside(profiler: profile, name: str) -> int:
    """Return the highest running sum of allocations while the range `name` runs."""
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    # PyTorch's stub leaves out the bytes of an event.
    events: list[Any] = sorted(results.events(), key=lambda event: event.start_ns())
    (step,) = [event for event in events if event.name() == name]
    changes = [event for event in events if event.name() == "[memory]"]
    held = accumulate(int(event.nbytes()) for event in changes)
    return max(
        num_bytes
        for event, num_bytes in zip(changes, held, strict=True)
        if step.start_ns() <= event.start_ns() <= step.end_ns()
    )
