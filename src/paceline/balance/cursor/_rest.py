"""What a plan leaves over, and what tells one plan from another."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.balance._epoch_plan import EpochPlan
from paceline.balance.cursor._state import Segment
from paceline.cost import Worker
from paceline.errors import StateMismatchError


def remaining_examples(plan: EpochPlan, num_steps: int) -> NDArray[np.int64]:
    """Return what is left after `num_steps` steps of `plan`, each example once, in order."""
    first = plan.micro_offsets[plan.step_offsets[num_steps]]
    return plan.examples[first:][~plan.is_repeat[first:]]


def plan_digest(plan: EpochPlan) -> str:
    """Return a hash of who gets what and when."""
    offsets = [plan.micro_offsets, plan.step_offsets]
    if (plan.num_microbatches != plan.num_microbatches[:, :1]).any():
        offsets.append(plan.worker_offsets)
    return digest_of(plan.examples, plan.is_repeat, *offsets)


def check_segment(segment: Segment, plan: EpochPlan, epoch: int) -> None:
    """Raise a `StateMismatchError` if `plan` is not the one that `segment` was delivered of."""
    is_same = not segment.num_steps or plan_digest(plan) == segment.digest
    if not is_same or segment.num_steps > plan.num_steps:
        raise StateMismatchError(
            f"the plan of epoch {epoch} for {len(segment.workers)} workers comes out other "
            "than the one that was saved, so examples would be lost or repeated; use the "
            "versions of paceline and NumPy that saved the state, or start the next epoch"
        )


@dataclass(frozen=True, eq=False)
class KeptPlan:
    """A plan, and its hash once somebody asks for it.

    Attributes:
        plan: Of what the present workers deliver of the epoch.
        num_before: Micro-batches per worker that others delivered before; where they had
            different numbers of them in a step, the largest.
    """

    plan: EpochPlan
    num_before: int = 0

    @cached_property
    def digest(self) -> str:
        """As `plan_digest` returns it."""
        return plan_digest(self.plan)


def digest_of(*arrays: NDArray[Any]) -> str:
    """Return a hash of arrays, their types and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def with_repeats(plan: EpochPlan) -> EpochPlan:
    """Mark all but one slot of each example of a plan of one step as repeats."""
    _, first = np.unique(plan.examples, return_index=True)
    is_repeat = np.ones(len(plan.examples), dtype=bool)
    is_repeat[first] = False
    return replace(plan, is_repeat=is_repeat)


def empty_plan(workers: tuple[Worker, ...]) -> EpochPlan:
    """Return a plan without steps."""
    return EpochPlan(
        num_workers=len(workers),
        examples=np.zeros(0, dtype=np.int64),
        is_repeat=np.zeros(0, dtype=bool),
        weighs_repeats=False,
        micro_offsets=np.zeros(1, dtype=np.int64),
        worker_offsets=np.zeros(1, dtype=np.int64),
        load=np.zeros((0, len(workers))),
        workers=workers,
    )
