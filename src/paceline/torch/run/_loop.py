"""Record one training loop: a model, its optimizer, and what each forward pass is given."""

from typing import Any

import torch

from paceline.run import UNKNOWN, Steps
from paceline.timeline import Timeline
from paceline.torch.measure import Detail, Watch
from paceline.torch.run._fetches import Fetches
from paceline.torch.run._find import is_plain
from paceline.torch.run._host_cost import OpCount, can_count
from paceline.torch.run._inputs import counted
from paceline.torch.run._rows import Counted, steps_of

# The first step that is recorded still warms up; the next one is slow from counting operations.
OPS_STEP = 1
# The last one that the verdict leaves out.
DETAIL_STEP = 2
FIRST_STEPS = 3


class Training:
    """Says whether a forward pass trains; one in `eval()` mode may, if the model has no other."""

    def __init__(self) -> None:
        self._was_in_train_mode = False

    def __call__(self, model: torch.nn.Module) -> bool:
        self._was_in_train_mode = self._was_in_train_mode or model.training
        return torch.is_grad_enabled() and (model.training or not self._was_in_train_mode)


class Loop:
    """Records from the end of the optimizer's first step on.

    Args:
        modules: Candidates for the model that the loop calls; those that are not called in the
            first steps are given up for the next one.
        optimizer: Its `step()` ends a step.
        fetches: What the loop waits for.
    """

    def __init__(
        self, modules: list[torch.nn.Module], optimizer: torch.optim.Optimizer, fetches: Fetches
    ) -> None:
        self.optimizer = optimizer
        self._fetches = fetches
        self._others = modules[1:]
        self.is_open = True
        self.num_seen = 1  # Steps, with the one that this loop was found by.
        self.ops: OpCount | None = None
        self.ops_counted = Counted()
        self._detail: Detail | None = None
        self._before_update = optimizer.register_step_pre_hook(self._before_step)
        self._attach(modules[0])

    def _attach(self, model: torch.nn.Module) -> None:
        self.model = model
        self._fetches.counts_padding = any(not one.is_cpu for one in model.parameters())
        # Before the recorder's own hook, so that counting is no part of the forward pass.
        self._before_forward = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._training = Training()
        self._watch = Watch(model, self.optimizer, None, counts=self._training)
        self._after_forward = model.register_forward_hook(self._listen)
        self._now, self._rows, self._first = Counted(), list[Counted](), 0

    @property
    def num_steps(self) -> int:
        """Steps that were recorded."""
        return self._first + len(self._rows)

    @property
    def num_held(self) -> int:
        """Those that wait to be drained."""
        return len(self._rows)

    def end_step(self) -> None:
        """The optimizer has stepped."""
        self.num_seen += 1
        row, self._now = self._now, Counted()
        if not row.num_microbatches and self._others and self.num_steps < FIRST_STEPS:
            self._detach()
            self._attach(self._others.pop(0))
            return
        if self._detail and self.num_steps == DETAIL_STEP:
            self._detail.close()
        self._rows.append(row)

    def drain(self) -> tuple[Steps, Timeline]:
        """Return the steps since the last call, and their spans; forget both."""
        spans = self._watch.drain()
        spans = spans.select(spans.step < self.num_steps)
        steps = steps_of(spans, self._rows, self._first)
        if self._detail and self._first <= DETAIL_STEP < self.num_steps:
            spans = self._detail.timeline(spans)
        self._first, self._rows = self.num_steps, []
        return steps, spans

    def end(self) -> None:
        """Remove all hooks; what was recorded stays."""
        self.is_open = False
        self._detach()
        self._before_update.remove()
        self._close_count()
        if self._detail:
            self._detail.close()

    def _detach(self) -> None:
        self._before_forward.remove()
        self._after_forward.remove()
        self._watch.remove_hooks()

    def _count(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._training(model):
            self._fetches.drop()
            return
        inputs = counted(args, kwargs)
        if inputs.num_padding == UNKNOWN and self._fetches.counts_padding:
            inputs = inputs._replace(num_padding=self._fetches.padding_of(inputs))
        inputs = inputs._replace(waited_s=self._fetches.take())
        self._close_count()
        if self.num_steps == OPS_STEP and self.ops is None and can_count(model):
            self.ops, self.ops_counted = OpCount(), inputs
            self.ops.open()
        self._in_detail(model)
        self._now = self._now.plus(inputs)

    def _in_detail(self, model: torch.nn.Module) -> None:
        if self.num_steps != DETAIL_STEP:
            return
        if self._detail:
            self._detail.hear()
        elif can_count(model) and is_plain(model):
            self._detail = Detail(model, DETAIL_STEP)
            self._detail.open()

    def _listen(self, model: torch.nn.Module, *_: object) -> None:
        if self._detail and self.num_steps == DETAIL_STEP and self._training(model):
            self._detail.listen()

    def _before_step(self, *_: object) -> None:
        self._close_count()
        if self._detail:
            self._detail.hear()

    def _close_count(self) -> None:
        if self.ops is not None:
            self.ops.close()
