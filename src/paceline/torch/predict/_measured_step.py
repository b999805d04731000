"""Run training steps of a model here and take their time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from paceline.predict import Estimate, StepEstimate
from paceline.predict.work import Workload
from paceline.torch.predict._trace import record_step
from paceline.torch.predict._trace_setup import ExampleInput, StepSetup, build, inputs_for

MIN_STEPS = 3
# The batch whose time says how large a batch fits the budget.
FIRST_BATCH_SIZE = 2
# Steps beside the timed ones: two that are recorded, and one to warm up.
OTHER_STEPS = 3


def measure_step(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None,
    setup: StepSetup,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_steps: int = MIN_STEPS,
    budget_s: float = float("inf"),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Workload, StepEstimate]:
    """Describe and time a few real steps on this CPU, for a model that cannot be traced.

    Takes the model and inputs of `trace_workload`. Runs on one thread: a recorded step, two to warm
    up, then `num_steps` timed ones. Returns the workload, and the median step between the fastest
    and the slowest. Where steps of the whole batch would take more than `budget_s`, a part of the
    batch is measured, seconds are multiplied by the rest, and the source is "predicted".
    `say` is called with a line about each part of the work before it begins.

    Raises:
        ValueError: If the model cannot be made, or a step fails on these inputs.
    """
    with threads(1):
        module, example_input = _built(model, example_input, input_shape)
        module = setup.prepared(module)
        try:
            part = _affordable(module, example_input, input_shape, setup, num_steps, budget_s, say)
            inputs = inputs_for(example_input, input_shape, part.batch_size)
            say(f"measuring {num_steps} steps of {part.batch_size} examples")
            _, work = record_step(module, inputs, part)
            seconds = sorted(time_steps(module, lambda _: inputs, part, num_steps=num_steps))
        except (RuntimeError, TypeError) as error:
            first = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"a step of the model fails on these inputs: {first}") from error
    compute = Estimate(seconds[len(seconds) // 2], seconds[0], seconds[-1])
    if part.batch_size == setup.batch_size:
        return work, StepEstimate(compute=compute, source="measured")
    whole = compute.scaled(setup.batch_size / part.batch_size)
    return work.with_batch_size(setup.batch_size), StepEstimate(compute=whole)


def _affordable(
    module: nn.Module,
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
    setup: StepSetup,
    num_steps: int,
    budget_s: float,
    say: Callable[[str], None],
) -> StepSetup:
    """Return the step with as many of its examples as `budget_s` is enough for."""
    first = min(FIRST_BATCH_SIZE, setup.batch_size)
    if budget_s == float("inf"):
        return setup
    say(f"trying a step of {first} examples")
    small = replace(setup, batch_size=first)
    inputs = inputs_for(example_input, input_shape, first)
    (step_s,) = time_steps(module, lambda _: inputs, small, num_steps=1)
    affordable = int(first * budget_s / (step_s * (num_steps + OTHER_STEPS)))
    return replace(setup, batch_size=min(setup.batch_size, max(first, affordable)))


def time_steps(
    model: nn.Module,
    example_input: ExampleInput | None,
    setup: StepSetup,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_steps: int = MIN_STEPS,
    budget_s: float = 0.0,
) -> list[float]:
    """Train for a few steps on one batch and return the seconds of each.

    One step before them warms up; then there are `num_steps` or more, until `budget_s` is used.
    Weights change; the model is where the caller put it.
    """
    inputs = inputs_for(example_input, input_shape, setup.batch_size)
    optimizer = setup.make_optimizer(model)
    seconds: list[float] = []
    used_s = 0.0
    while len(seconds) <= num_steps or used_s < budget_s:
        begin = perf_counter()
        setup.train(model, inputs, optimizer)
        seconds.append(perf_counter() - begin)
        used_s += seconds[-1]
    return seconds[1:]


@contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Use so many intra-op threads inside, and the former number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _built(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
) -> tuple[nn.Module, ExampleInput | None]:
    try:
        return build(model, example_input, input_shape)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
