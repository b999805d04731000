"""Where this rank is in its training loop, as far as hooks tell."""

from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import torch
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from paceline.torch.model import tensors_in

PHASES = (
    "before forward, waiting for data",
    "in forward",
    "in the loss",
    "in backward",
    "waiting for gradients",
    "after backward",
    "in the optimizer step",
    "comparing replicas",
)
BETWEEN, FORWARD, LOSS, BACKWARD, WAITING, AFTER, OPTIMIZER, COMPARING = range(len(PHASES))


class Place(NamedTuple):
    """Where a rank is; later places are greater.

    Attributes:
        step: Steps that it has ended since the guard began.
        num_forwards: Forward passes begun in this step.
        phase: Index into `PHASES`.
    """

    step: int
    num_forwards: int
    phase: int

    def __str__(self) -> str:
        return f"step {self.step + 1}, {PHASES[self.phase]}"


class Progress:
    """Notes the place of this rank; a note costs about a microsecond and sends nothing.

    Args:
        at_step: Called after each step with the number of steps that have ended.

    Attributes:
        now: Where this rank is, and since when.
        step_began_s: When its present step began.
    """

    def __init__(self, at_step: Callable[[int], None]) -> None:
        self._at_step = at_step
        self._is_active = True
        self._handles: list[RemovableHandle] = []
        # Read by other threads: each is replaced as a whole.
        self.now: tuple[Place, float] = Place(0, 0, BETWEEN), monotonic()
        self.step_began_s = monotonic()

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin to follow the loop that calls `model`; a step of `optimizer` ends a step."""
        self._handles = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
            optimizer.register_step_pre_hook(self._before_update),
            optimizer.register_step_post_hook(self._after_update),
        ]
        self.step_began_s = monotonic()

    def remove_hooks(self) -> None:
        """Leave the model and the optimizer as they were."""
        self._is_active = False
        while self._handles:
            self._handles.pop().remove()

    def note(self, phase: int) -> None:
        """Note that `phase` begins."""
        place, _ = self.now
        num_forwards = place.num_forwards + (phase == FORWARD)
        self.now = Place(place.step, num_forwards, phase), monotonic()

    def _before_forward(self, _module: torch.nn.Module, _args: Any) -> None:
        if torch.is_grad_enabled():
            self.note(FORWARD)

    def _after_forward(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        self.note(LOSS)
        for tensor in tensors_in(output):
            # A leaf, such as a weight that is handed out, would keep its hook for good.
            if tensor.requires_grad and not tensor.is_leaf:
                tensor.register_hook(self._on_output_grad)

    def _on_output_grad(self, _grad: torch.Tensor) -> None:
        if self._is_active and self.now[0].phase != BACKWARD:
            self.note(BACKWARD)
            Variable._execution_engine.queue_callback(self._after_own_backward)

    def _after_own_backward(self) -> None:
        """Run by autograd when this rank's gradients exist.

        DistributedDataParallel queued its own wait meanwhile, so what is queued now runs
        after that wait.
        """
        if self._is_active:
            self.note(WAITING)
        Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        if self._is_active:
            self.note(AFTER)

    def _before_update(self, _optimizer: object, _args: Any, _kwargs: Any) -> None:
        self.note(OPTIMIZER)

    def _after_update(self, _optimizer: object, _args: Any, _kwargs: Any) -> None:
        step = self.now[0].step + 1
        self.note(COMPARING)
        self._at_step(step)
        self.step_began_s = monotonic()
        self.now = Place(step, 0, BETWEEN), self.step_began_s
