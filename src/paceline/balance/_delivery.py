"""What one worker receives of a plan, micro-batch after micro-batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance._epoch_plan import EpochPlan


class MicroBatch(NamedTuple):
    """What one worker receives at once.

    Attributes:
        step: Optimizer step that it belongs to.
        examples: Indices into the dataset, at least one. Shape `(num_examples,)`.
        loss_weight: Factor for the mean loss over `examples`: summed over the
            micro-batches of a step and averaged over workers, the weighted means are
            the mean over the global batch. Over its examples, or over their terms.
        is_step_end: Whether it is the last of its step.
    """

    step: int
    examples: NDArray[np.int64]
    loss_weight: float
    is_step_end: bool


def micro_batches_of(
    plan: EpochPlan,
    worker: int,
    *,
    first_step: int = 0,
    loss_terms: NDArray[np.float64] | None = None,
) -> Iterator[MicroBatch]:
    """Yield what `worker` receives from `first_step` on.

    Repeats that count nothing are left out. Where that would leave a micro-batch empty,
    one of them is delivered with a weight of 0, so that the worker takes part in
    the step's collectives.

    Args:
        plan: The plan.
        worker: Whose part.
        first_step: Steps that are left out.
        loss_terms: Terms of each example of the dataset in the mean that a loss is, such as
            its target tokens, shape `(num_examples,)`; unset for one each.

    Examples:
        >>> from paceline.balance import BalanceConfig, plan_epoch
        >>> config = BalanceConfig(batch_size=4, num_workers=2, counts="free", shuffle=False)
        >>> plan = plan_epoch([6.0, 2.0, 2.0, 2.0], config)
        >>> [(b.examples.tolist(), b.loss_weight) for b in micro_batches_of(plan, 1)]
        [([1, 2, 3], 1.5)]
    """
    counts = np.ones(len(plan.examples), dtype=bool) if plan.weighs_repeats else ~plan.is_repeat
    weights = _loss_weights(
        plan, counts if loss_terms is None else counts * loss_terms[plan.examples]
    )
    is_whole = np.logical_and.reduceat(counts, plan.micro_offsets[:-1])
    part, step, is_last = _parts_of(plan, worker, first_step)
    begins, ends = plan.micro_offsets[part], plan.micro_offsets[part + 1]
    columns = (step, begins, ends, weights[part], is_last, is_whole[part])
    # Lists, because a number out of an array takes as long to read as all the rest.
    for at, begin, end, weight, is_end, is_full in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        examples = plan.examples[begin:end]
        if not is_full:
            counting = examples[counts[begin:end]]
            examples = counting if len(counting) else examples[:1]
        yield MicroBatch(at, examples, weight, is_end)


def _parts_of(
    plan: EpochPlan, worker: int, first_step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return a worker's micro-batches, the step of each, and whether it is the last of it."""
    begins = plan.worker_offsets[worker :: plan.num_workers][first_step : plan.num_steps]
    numbers = plan.num_microbatches[first_step:, worker]
    step = np.repeat(np.arange(len(numbers)), numbers)
    ends = np.cumsum(numbers)
    part = np.arange(len(step)) + (begins - ends + numbers)[step]
    return part, step + first_step, np.arange(1, len(step) + 1) == ends[step]


def _loss_weights(plan: EpochPlan, terms: NDArray[Any]) -> NDArray[np.float64]:
    """Return the loss weight of every micro-batch; `terms` has an entry for each slot."""
    in_part = np.add.reduceat(terms.astype(np.float64), plan.micro_offsets[:-1])
    in_step = np.add.reduceat(in_part, plan.step_offsets[:-1])
    per_worker = np.repeat(in_step / plan.num_workers, np.diff(plan.step_offsets))
    weights: NDArray[np.float64] = in_part / per_worker
    return weights


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Delivery:
    """What all workers receive of a plan: step after step, worker after worker, in order.

    Attributes:
        examples: Indices into the dataset. Shape `(num_delivered,)`.
        worker: Who receives each. Same shape.
        loss_weight: That of the micro-batch which each is in. Same shape.
        step_offsets: Where each step begins, and the end. Shape `(num_steps + 1,)`.
    """

    examples: NDArray[np.int64]
    worker: NDArray[np.int64]
    loss_weight: NDArray[np.float64]
    step_offsets: NDArray[np.int64]


def delivery_of(plan: EpochPlan) -> Delivery:
    """Return at once what `micro_batches_of` yields to every worker. Takes O(n) time.

    Examples:
        >>> from paceline.balance import BalanceConfig, plan_epoch
        >>> config = BalanceConfig(batch_size=4, num_workers=2, counts="free", shuffle=False)
        >>> found = delivery_of(plan_epoch([6.0, 2.0, 2.0, 2.0], config))
        >>> found.examples.tolist(), found.worker.tolist(), found.loss_weight.tolist()
        ([0, 1, 2, 3], [0, 1, 1, 1], [0.5, 1.5, 1.5, 1.5])
    """
    num_micro = plan.num_microbatches.ravel()
    step, worker = np.divmod(np.repeat(np.arange(len(num_micro)), num_micro), plan.num_workers)
    micro = np.repeat(np.arange(len(step)), np.diff(plan.micro_offsets))
    is_delivered = ~plan.is_repeat | plan.weighs_repeats
    counting = np.bincount(micro[is_delivered], minlength=len(step))
    weight = counting / (np.bincount(step, counting)[step] / plan.num_workers)
    is_delivered[plan.micro_offsets[:-1][counting == 0]] = True
    micro = micro[is_delivered]
    num_in_step = np.bincount(step[micro], minlength=plan.num_steps)
    return Delivery(
        examples=plan.examples[is_delivered],
        worker=worker[micro],
        loss_weight=weight[micro],
        step_offsets=np.concatenate([[0], np.cumsum(num_in_step)]),
    )
