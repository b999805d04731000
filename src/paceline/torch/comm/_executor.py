"""What executes a plan: the same calls, with whole updates or with sharded ones."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch

from paceline.torch.comm.sharded import Custody, ShardedExecutor, ShardedUpdate, ShardLayout
from paceline.torch.comm.transfer import Route, Trained, Worker
from paceline.torch.comm.whole import BlockExecutor
from paceline.torch.model import PartialUpdate


class Executor(Protocol):
    """Averages gradients over the ranks and updates parameters, as a plan says.

    In each step `end_round`, `begin`, `note_ready` for each gradient, `finish`; then either
    `release`, for updates beside the main thread, or `deliver` and `retire` around updates by the
    caller.

    Attributes:
        has_whole_gradients: Whether each rank gets whole averaged gradients, as with
            DistributedDataParallel, and not only parts of them.
        wire: Type that wider gradients are sent in; None for their own.
    """

    has_whole_gradients: bool
    wire: torch.dtype | None

    def use(self, route: Route, order: Sequence[int]) -> None:
        """Take `route` from the next backward pass on; tensors in `order` are needed so."""

    def ask_to_wait(self) -> None:
        """Ask all ranks to wait for all gradients before the first update."""

    @property
    def has_open_round(self) -> bool:
        """Whether a backward pass has begun whose gradients no step has taken yet."""

    def end_round(self) -> bool:
        """Finish what was begun; tell once, on all ranks alike, whether one asked to wait."""

    def begin(self) -> None:
        """Open a backward pass; `end_round` comes first."""

    def note_ready(self, tensor: int) -> None:
        """Take the gradient of one parameter."""

    def finish(self) -> None:
        """End the backward pass: gradients that did not come will not come."""

    def deliver(self) -> None:
        """Wait for all averaged gradients; whole ones are put into `.grad`."""

    def clip(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Scale the averaged gradients to a norm of at most `max_norm`; return the norm."""

    def release(self) -> None:
        """Let updates begin beside the main thread."""

    def retire(self) -> None:
        """Close the round without updates: the caller has applied them."""

    def wait_updated(self, tensors: Collection[int]) -> None:
        """Wait until `tensors` are updated."""

    def flush(self) -> None:
        """Finish what is under way: updates after a step, else gradients after a backward pass."""

    def optimizer_state_dict(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's whole state on rank 0, {} on others; all ranks must call it."""

    def give_back(self) -> None:
        """Leave the optimizer its whole state; all ranks must call it, and train no more."""

    def close(self) -> None:
        """Finish what other ranks may wait for, within 10 s, and end all threads."""


def whole_executor(
    trained: Trained, update: PartialUpdate, *, num_in_flight: int, wire: torch.dtype | None
) -> Executor:
    """Return what updates every parameter on every rank."""
    worker = Worker(trained.device)
    return BlockExecutor(trained, update, worker, num_in_flight=num_in_flight, wire=wire)


def sharded_executor(
    trained: Trained, optimizer: torch.optim.Optimizer, *, num_in_flight: int
) -> Executor:
    """Return what shares `optimizer`'s work over the ranks.

    Until `give_back`, `optimizer.state_dict()` raises, since no rank could answer alone;
    `optimizer.load_state_dict` keeps the own parts of a whole state.

    Raises:
        ValueError: If the optimizer does not update element by element.
    """
    layout = ShardLayout(trained.parameters, trained.num_ranks)
    update = ShardedUpdate(optimizer, trained.parameters, layout, trained.rank)
    return ShardedExecutor(
        trained,
        update,
        layout,
        Worker(trained.device),
        num_in_flight=num_in_flight,
        custody=Custody(optimizer, update),
    )
