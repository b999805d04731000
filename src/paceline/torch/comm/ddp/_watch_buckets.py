"""Watch the buckets of DistributedDataParallel: sends as before, and measures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed as dist
from torch.autograd import Variable
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # not in its stubs
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from paceline.errors import MeasurementError
from paceline.torch.comm.ddp._bucket_times import BucketMarks, BucketTimes, DDPAdvice, advise
from paceline.torch.model import clock_of, tensors_in

NUM_WARMUP = 3

Future = torch.futures.Future[torch.Tensor]
Hook = Callable[[Any, GradBucket], Future]


class BucketWatch:
    """What the buckets of DistributedDataParallel did, and advice; see `watch_buckets`.

    Made by itself, it has to be registered: `ddp.register_comm_hook(None, watch.hook)`, or
    what a framework that takes a hook calls this.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        hook: Hook = allreduce_hook,
        hook_state: Any = None,
        *,
        num_steps: int = 20,
        one_at_a_time: bool = False,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self._group: dist.ProcessGroup = ddp.process_group
        self._hook, self._one_at_a_time = hook, one_at_a_time
        self._hook_state = self._group if hook_state is None else hook_state
        self._num_steps, self._num_begun = num_steps, 0
        self._clock = clock_of(ddp)
        trained = [parameter for parameter in ddp.parameters() if parameter.requires_grad]
        self._number_of: dict[torch.Tensor, int] = {
            one: number for number, one in enumerate(trained)
        }
        self._num_bytes = [float(parameter.nbytes) for parameter in trained]
        self._steps: list[BucketMarks] = []
        self._current: BucketMarks | None = None
        self._last: Future | None = None
        self._in_backward = False
        self._handles: list[RemovableHandle] = [ddp.register_forward_hook(self._after_forward)]
        for number, parameter in enumerate(trained):
            after = parameter.register_post_accumulate_grad_hook(self._on_gradient(number))
            self._handles.append(after)

    @property
    def num_measured(self) -> int:
        """Steps that were measured so far."""
        return len(self._steps)

    def hook(self, state: Any, bucket: GradBucket) -> Future:
        """Send a bucket as the inner hook does, and note when it was ready and when averaged.

        A communication hook as DistributedDataParallel takes it; `state` is not used.
        """
        if self._one_at_a_time and self._last is not None:
            self._last.wait()
        current, index = self._current, bucket.index()
        if current is None:
            self._last = self._hook(self._hook_state, bucket)
            return self._last
        current.tensors[index] = tuple(self._number_of[one] for one in bucket.parameters())
        current.bucket_ready[index] = self._clock.mark()
        sent = self._hook(self._hook_state, bucket)

        def note(future: Future) -> torch.Tensor:
            value = future.value()
            current.bucket_done[index] = self._clock.mark()
            return value

        self._last = sent.then(note)
        return self._last

    def times(self) -> BucketTimes:
        """Return what this rank measured: medians over the steps.

        Raises:
            MeasurementError: If no step was measured yet.
        """
        if not self._steps:
            raise MeasurementError(
                f"no step was measured yet; train for {NUM_WARMUP + 2} steps or more after "
                "watch_buckets(ddp)"
            )
        return BucketTimes.of(self._steps, self._clock, self._num_bytes)

    def advice(self) -> DDPAdvice:
        """Return the best bucket size for what was measured; all ranks must call it.

        Measures the link once more. All ranks take rank 0's numbers and return the same.

        Raises:
            MeasurementError: If no step was measured yet.
        """
        return advise(self.times(), self._num_bytes, self._group)

    def _after_forward(self, ddp: torch.nn.Module, _args: Any, output: Any) -> None:
        if not (torch.is_grad_enabled() and ddp.require_backward_grad_sync):
            return
        self._in_backward = False  # The last backward pass may have raised on its way.
        for tensor in tensors_in(output):
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def _on_output_grad(self, _gradient: torch.Tensor) -> None:
        if self._in_backward or not self._handles:
            return
        self._in_backward = True
        begin = self._clock.mark()
        if self._current is not None and self._current.close(begin):
            self._steps.append(self._current)
        self._current = None
        if len(self._steps) == self._num_steps:
            self._stop()
            return
        self._num_begun += 1
        # The first steps warm up; DDP also regroups its buckets after the first of them.
        if self._num_begun > NUM_WARMUP:
            current = self._current = BucketMarks(begin)
            # Runs before DDP's own callback, which waits for the buckets.
            Variable._execution_engine.queue_callback(lambda: self._end(current))

    def _end(self, current: BucketMarks) -> None:
        current.end = self._clock.mark()

    def _on_gradient(self, number: int) -> Callable[[torch.Tensor], None]:
        def hook(_parameter: torch.Tensor) -> None:
            if self._in_backward and self._current is not None:
                self._current.gradients[number] = self._clock.mark()

        return hook

    def _stop(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def watch_buckets(
    ddp: DistributedDataParallel,
    hook: Hook = allreduce_hook,
    hook_state: Any = None,
    *,
    num_steps: int = 20,
    one_at_a_time: bool = False,
) -> BucketWatch:
    """Measure what the buckets of `ddp` do in the next steps, to be asked for a better size.

    Buckets, their order and their numbers stay DDP's: every bucket is handed to `hook` the
    moment DDP hands it over, and DDP waits for all of them before the optimizer. Times are
    taken for `num_steps` steps after three to warm up; then the hooks on the model
    are removed. Forward passes under `no_sync` are not measured.

    Args:
        ddp: The wrapped model, without a communication hook so far; it keeps this one.
        hook: What sends a bucket, such as torch's `fp16_compress_hook` or `powerSGD_hook`;
            unset for the all-reduce that DDP does without a hook.
        hook_state: Passed on to `hook`; unset for the model's process group, which is what
            torch's hooks without a state of their own take.
        num_steps: Steps to measure, at least 1.
        one_at_a_time: Hand over a bucket only when the one before is averaged. A hook that
            sends again when a first transfer ends, as PowerSGD does, needs this on gloo
            if there are several buckets: nothing keeps the second transfers of two buckets
            in the same order on all ranks, and runs without it did not get through.

    Returns:
        What is asked for `times()` on one rank, or `advice()` on all ranks. Where a framework
        registers hooks itself, make a `BucketWatch` and hand over its `hook`.

    Raises:
        ValueError: If `num_steps` is below 1.

    Examples:
        ```python
        watch = watch_buckets(DistributedDataParallel(model))
        ...  # train for 24 steps or more
        print(watch.advice())  # on all ranks
        ```
    """
    watch = BucketWatch(ddp, hook, hook_state, num_steps=num_steps, one_at_a_time=one_at_a_time)
    ddp.register_comm_hook(None, watch.hook)
    return watch
