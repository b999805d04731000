"""The end of a step, whether the user calls `model.step()` or, as elsewhere, `optimizer.step()`."""

from warnings import warn

import torch

from paceline.torch.comm._control import PlanControl
from paceline.torch.comm._executor import Executor
from paceline.torch.comm._mode import Mode
from paceline.torch.comm.habits import OutsideSteps, Ownership
from paceline.torch.comm.transfer import Trained
from paceline.torch.model import PartialUpdate


class Steps:
    """Ends each step: all parameters are updated at once, or each beside the main thread.

    Args:
        optimizer: Updates the parameters. Where the user calls its `step()`, that step is right,
            too, but no communication overlaps the next forward pass from then on.
        ownership: Holds it to parameters that are trained.
        update: Updates some parameters at a time.
        executor: Averages gradients.
        control: Is told of each step.
        trained: Parameters whose gradients are cleared.

    Attributes:
        outside: Notices the steps that the user takes; its handles end that.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        ownership: Ownership,
        update: PartialUpdate,
        executor: Executor,
        control: PlanControl,
        trained: Trained,
    ) -> None:
        self._optimizer, self._ownership, self._update = optimizer, ownership, update
        self._executor, self._control, self._trained = executor, control, trained
        self._is_taken = self._has_warned = False
        self.outside = OutsideSteps(optimizer, self)

    def begin(self) -> None:
        """Expect another step: a forward pass has begun."""
        self._is_taken = False

    def take(self, scaler: torch.amp.GradScaler | None) -> None:
        """Update the parameters and clear the gradients.

        Raises:
            ValueError: If the user has taken this step by `optimizer.step()`.
        """
        if self._is_taken and not self._executor.has_open_round:
            raise ValueError(
                f"rank {self._trained.rank}: optimizer.step() has taken this step already, and "
                "model.step() would take it once more; call one of the two"
            )
        self._ownership.check()
        self._control.end_backward()
        is_overlapped = self._control.way is Mode.OVERLAPPED
        with self.outside.own():
            if self._executor.has_whole_gradients and not is_overlapped:
                self._now(scaler)
            else:
                self._update.run_hooks(before=True)
                self._beside()
                self._update.run_hooks(before=False)
        if not is_overlapped:
            self._executor.flush()
        with self._trained.talking("a measured time"):
            self._control.end_step()

    def before_outside_step(self, *, has_closure: bool) -> None:
        """Bring the averaged gradients home, for the optimizer to see them.

        Raises:
            ValueError: If updates are sharded and there is a closure, which comes too late.
        """
        if has_closure and not self._executor.has_whole_gradients:
            raise ValueError(
                f"rank {self._trained.rank}: with sharded=True optimizer.step() takes no closure; "
                "run the passes before model.step(), or pass sharded=False"
            )
        self._ownership.check()
        self._control.must_wait("optimizer.step() updates all parameters before it returns")
        self._warn_once()
        if has_closure:  # Its backward passes bring them.
            return
        self._control.end_backward()
        if not self._executor.has_whole_gradients:
            self._beside()  # It leaves no gradient, so the optimizer itself does nothing.

    def after_outside_step(self) -> None:
        """Go on as after `take`; gradients stay, until the user clears them."""
        if self._executor.has_whole_gradients:
            self._executor.retire()
        self._executor.flush()
        self._is_taken = True
        with self._trained.talking("a measured time"):
            self._control.end_step()

    def _now(self, scaler: torch.amp.GradScaler | None) -> None:
        self._executor.retire()
        if scaler is not None:
            scaler.step(self._optimizer)
        else:
            self._optimizer.step()
        self._clear()

    def _beside(self) -> None:
        self._update.begin()
        self._executor.release()
        self._clear()

    def _clear(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for parameter in self._trained.parameters:
            parameter.grad = None

    def _warn_once(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"rank {self._trained.rank}: optimizer.step() waits for all gradients; call "
                "model.step() in its place, so that communication may overlap the forward pass",
                stacklevel=5,
            )
