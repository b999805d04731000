"""What the buckets of DistributedDataParallel did, and which size would be best."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import distributed as dist

from paceline.comm import BlockPlan, WireProblem, advise_buckets, step_time_s
from paceline.cost import Link
from paceline.torch.measure import measure_link
from paceline.torch.model import Clock
from paceline.torch.ranks import from_rank_0

# Sizes must lie this far apart to tell the latency of a transfer from its bandwidth.
LEAST_SPREAD = 4.0
LEAST_S = 1e-6
MAX_BYTES_PER_S = 1e12
# Buckets are sent without waiting for those before; two hide the latency of each other.
NUM_IN_FLIGHT = 2


@dataclass(slots=True, eq=False)
class BucketMarks:
    """Marks of one step; it ends where the next backward pass begins.

    Attributes:
        begin: The backward pass begins.
        end: It has computed all gradients; DDP begins to wait for the rest of the buckets.
        next_begin: The next backward pass begins.
        gradients: Per parameter, its gradient is there.
        bucket_ready: Per bucket, DDP hands it over.
        bucket_done: Per bucket, it is averaged.
        tensors: Per bucket, its parameters.
    """

    begin: object
    end: object = None
    next_begin: object = None
    gradients: dict[int, object] = field(default_factory=dict)
    bucket_ready: dict[int, object] = field(default_factory=dict)
    bucket_done: dict[int, object] = field(default_factory=dict)
    tensors: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def close(self, next_begin: object) -> bool:
        """End the step; tell whether it is complete."""
        self.next_begin = next_begin
        return bool(
            self.end is not None
            and self.bucket_ready
            and self.bucket_done.keys() == self.bucket_ready.keys()
        )

    def seconds(self, clock: Clock, num_tensors: int) -> NDArray[np.float64]:
        """Return end, next begin, then per parameter and bucket, all since `begin`."""
        # A parameter that the backward pass does not reach is ready from its beginning on.
        marks = [self.gradients.get(number, self.begin) for number in range(num_tensors)]
        marks += [self.bucket_ready[index] for index in self.tensors]
        marks += [self.bucket_done[index] for index in self.tensors]
        # The clock waits for the last mark only, so the last in time goes last.
        times_s = np.array(clock.seconds([self.begin, self.end, *marks, self.next_begin]))
        since_s: NDArray[np.float64] = times_s - times_s[0]
        return np.concatenate([since_s[1:2], since_s[-1:], since_s[2:-1]])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BucketTimes:
    """What the buckets of one rank did: measured, medians over steps.

    Times count from the beginning of the backward pass.

    Attributes:
        tensors: Parameters of each bucket, in the order of sending.
        num_bytes: Bytes of each bucket's gradients, like the rest of shape `(num_buckets,)`.
        ready_s: When DDP handed it over.
        done_s: When it was averaged.
        gradient_s: When each parameter's gradient was there, shape `(num_parameters,)`.
        backward_s: When the backward pass had computed all gradients.
        exposed_s: From then on until the last bucket was averaged: not overlapped by computation.
        step_s: From one backward pass to the next.
        num_steps: Steps that were measured.
    """

    tensors: tuple[tuple[int, ...], ...]
    num_bytes: NDArray[np.float64]
    ready_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    gradient_s: NDArray[np.float64]
    backward_s: float
    exposed_s: float
    step_s: float
    num_steps: int

    @classmethod
    def of(
        cls, steps: Sequence[BucketMarks], clock: Clock, num_bytes: Sequence[float]
    ) -> "BucketTimes":
        """Take medians over the steps whose buckets are those of the last."""
        tensors = tuple(steps[-1].tensors.values())
        alike = [step for step in steps if tuple(step.tensors.values()) == tensors]
        times_s = np.stack([step.seconds(clock, len(num_bytes)) for step in alike])
        num_tensors, num_buckets = len(num_bytes), len(tensors)
        end_s, done_s = times_s[:, 0], times_s[:, 2 + num_tensors + num_buckets :]
        exposed_s = np.maximum(done_s.max(axis=1) - end_s, 0.0)
        medians = np.median(times_s, axis=0)
        return cls(
            tensors=tensors,
            num_bytes=np.array([sum(num_bytes[one] for one in bucket) for bucket in tensors]),
            ready_s=medians[2 + num_tensors : 2 + num_tensors + num_buckets],
            done_s=medians[2 + num_tensors + num_buckets :],
            gradient_s=medians[2 : 2 + num_tensors],
            backward_s=float(medians[0]),
            exposed_s=float(np.median(exposed_s)),
            step_s=float(medians[1]),
            num_steps=len(alike),
        )

    @property
    def transfer_s(self) -> NDArray[np.float64]:
        """Seconds of each bucket on the wire, not counting those that it waited for another."""
        before_s = np.concatenate([[0.0], np.maximum.accumulate(self.done_s)[:-1]])
        begin_s = np.maximum(self.ready_s, before_s)
        wire_s: NDArray[np.float64] = np.maximum(self.done_s - begin_s, LEAST_S)
        return wire_s

    def link(self, plain: Link) -> Link:
        """Return the wire as the buckets saw it, with whatever a hook does to them.

        Where bucket sizes are too alike to tell, the latency is that of `plain`.
        """
        if self.num_bytes.max() >= LEAST_SPREAD * self.num_bytes.min():
            return Link.fit(self.num_bytes, self.transfer_s)
        wire_s = max(float((self.transfer_s - plain.alpha_s).sum()), LEAST_S)
        return Link(plain.alpha_s, float(self.num_bytes.sum()) / wire_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPAdvice:
    """Which bucket size to pass to DistributedDataParallel; equal on all ranks.

    Attributes:
        bucket_cap_mb: The size to pass.
        predicted_s: Simulated seconds per step with it.
        predicted_now_s: Simulated seconds per step with the buckets that were measured.
        measured_s: Measured seconds per step with those.
        exposed_s: Measured seconds per step in which only the wire was at work.
        num_steps: Steps that were measured.
    """

    bucket_cap_mb: float
    predicted_s: float
    predicted_now_s: float
    measured_s: float
    exposed_s: float
    num_steps: int

    def __str__(self) -> str:
        return (
            f"bucket_cap_mb={self.bucket_cap_mb:g}: {self.predicted_s * 1e3:.4g} ms per step "
            f"(simulated); now {self.predicted_now_s * 1e3:.4g} ms (simulated), "
            f"{self.measured_s * 1e3:.4g} ms (measured over {self.num_steps} steps), of which "
            f"{self.exposed_s * 1e3:.4g} ms wait for the wire"
        )


def advise(
    times: BucketTimes, num_bytes: Sequence[float], group: dist.ProcessGroup | None
) -> DDPAdvice:
    """Return the best bucket size; all ranks must call it, and rank 0's times count."""
    link = times.link(measure_link(group))
    own = [
        link.alpha_s,
        min(link.bytes_per_s, MAX_BYTES_PER_S),
        times.backward_s,
        times.exposed_s,
        times.step_s,
        *times.gradient_s,
    ]
    alpha_s, bytes_per_s, backward_s, exposed_s, step_s, *ready_s = from_rank_0(
        np.array(own), group
    ).tolist()
    rest_s = max(step_s - backward_s - exposed_s, 0.0)
    problem, order = problem_of(ready_s, num_bytes, backward_s, rest_s, Link(alpha_s, bytes_per_s))
    best = advise_buckets(problem)
    return DDPAdvice(
        bucket_cap_mb=best.bucket_cap_mb,
        predicted_s=best.step_s,
        predicted_now_s=step_time_s(problem, plan_of(times, problem, order)),
        measured_s=step_s,
        exposed_s=exposed_s,
        num_steps=times.num_steps,
    )


def problem_of(
    ready_s: Sequence[float],
    num_bytes: Sequence[float],
    backward_s: float,
    rest_s: float,
    link: Link,
) -> tuple[WireProblem, list[int]]:
    """Return the step, and which parameter each tensor of it is.

    Tensors are numbered against the order of arrival, which is how DDP fills buckets.
    """
    order = sorted(range(len(ready_s)), key=lambda one: (-ready_s[one], one))
    order = [one for one in order if num_bytes[one] > 0]
    problem = WireProblem(
        forward_s=np.array([rest_s]),
        layer=np.zeros(len(order), dtype=np.int64),
        num_bytes=np.array(num_bytes)[order],
        ready_s=np.clip(np.array(ready_s)[order], 0.0, backward_s),
        backward_s=backward_s,
        link=link,
        num_in_flight=NUM_IN_FLIGHT,
    )
    return problem, order


def plan_of(times: BucketTimes, problem: WireProblem, order: Sequence[int]) -> BlockPlan:
    """Return the buckets that were measured as a plan for `problem_of`'s step."""
    place = {tensor: number for number, tensor in enumerate(order)}
    # A parameter without elements is in a bucket, but not in a plan.
    buckets = [[place[one] for one in bucket if one in place] for bucket in times.tensors]
    tensor = np.array([one for bucket in buckets for one in bucket])
    return BlockPlan.from_parts(
        "ddp as measured",
        problem,
        tensor,
        problem.num_bytes[tensor],
        np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets]),
        waits_for_all=True,
    )
