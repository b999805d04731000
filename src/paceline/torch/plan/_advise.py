"""Measure a live job, then say which parts are worth it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike

from paceline import plan
from paceline.balance import BalanceConfig
from paceline.cost import ExampleCost, LinearCost, checked_column
from paceline.torch.measure import MeasuredCost, measure_job
from paceline.torch.model import tensors_in
from paceline.torch.ranks import Group


def advise(
    model: torch.nn.Module,
    batch: Any,
    *,
    sizes: ArrayLike | None = None,
    config: BalanceConfig | None = None,
    cost: ExampleCost | MeasuredCost | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    num_steps: int = 20,
    process_group: Group | None = None,
) -> plan.Advice:
    """Measure what a step of `model` costs, and say which parts of Paceline are worth it.

    Takes `num_steps` forward and backward passes, and some all-reduces; then everything is
    simulated. What was changed is put back. The update is not measured, so gains are shares of the
    rest of the step. Every rank must call it, and all get the same advice.

    Args:
        model: What the training loop calls.
        batch: A typical one of this rank; passed as to `measure_job`.
        sizes: Size of each example of the dataset, equal on all ranks; see `example_sizes`. Unset,
            nothing is said of balance.
        config: Global batches; unset for as many examples as `batch` has on each rank, not padded.
        cost: What an example costs by size, in any unit, or what `measure_cost` returned; unset
            for in proportion to its size.
        loss: As for `measure_job`.
        num_steps: Passes, at least 4.
        process_group: As for `measure_job`.

    Raises:
        ValueError: If `batch` holds no tensor to count examples by, and as `measure_job` and
            `paceline.plan.advise`.
        MeasurementError: If the model has no parameter that gets a gradient.

    Examples:
        >>> model = torch.nn.Linear(4, 1)
        >>> print(advise(model, torch.ones(8, 4), num_steps=4).not_worth[0])
        balance: a single worker has nobody to wait for
    """
    per_worker = 0 if sizes is None or config is not None else _num_examples(batch)
    job = measure_job(model, batch, loss=loss, num_steps=num_steps, process_group=process_group)
    if sizes is None:
        return plan.advise(job)
    config = config or BalanceConfig(batch_size=per_worker * len(job.workers))
    example, seconds_per_cost = cost or LinearCost(), None
    if isinstance(example, MeasuredCost):
        config = replace(config, microbatch_cost=example.microbatch)
        example, seconds_per_cost = example.example, 1.0
    job = replace(job, sizes=checked_column("sizes", sizes), cost=example)
    return plan.advise(job, config, seconds_per_cost=seconds_per_cost)


def _num_examples(batch: Any) -> int:
    tensor = next((one for one in tensors_in(batch) if one.dim()), None)
    if tensor is None:
        raise ValueError(
            "batch must hold a tensor whose first axis counts examples, got "
            f"{type(batch).__name__}; pass config=BalanceConfig(batch_size=...)"
        )
    return len(tensor)
