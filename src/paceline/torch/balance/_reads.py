"""Whether a training loop reads what its batches count, and whether it means the right batch."""

import warnings
from typing import Any

import torch

NEEDS = {
    "loss_weight": (
        1.0,
        "so this loss would count otherwise than in plain training; multiply the mean loss of "
        "each batch by loader.loss_weight",
    ),
    "is_step_end": (
        True,
        "so a step of the optimizer after each batch would be another training run; make it "
        "where loader.is_step_end",
    ),
}
WITH_INFO = "with DataLoader(..., with_info=True) each batch brings its own"


class Reads:
    """One attribute of the batches that a loop receives.

    Reading it is safe while the loop reads between each two batches. A loop, or a wrapper of
    the loader, that receives some batches before it reads may mean any of them from then on:
    it is answered as long as they are all alike, and else refused.

    Args:
        name: Of the attribute.
        rank: This rank.
        warns: Whether a value that would have mattered and was not read is warned of, once;
            never where no gradients are recorded.
    """

    def __init__(self, name: str, rank: int, *, warns: bool) -> None:
        self._name, self._rank, self._warns = name, rank, warns
        self._plain, self._consequence = NEEDS[name]
        self.begin()

    def begin(self) -> None:
        """Forget what another pass delivered."""
        self._value: Any = None
        self._num_delivered = self._num_alike = self._num_unread = 0
        self._lag = 1

    def deliver(self, value: Any) -> None:
        """Note that the loop receives another batch, with this value."""
        self.end()
        self._num_alike = self._num_alike + 1 if value == self._value else 1
        self._value = value
        self._num_delivered += 1
        self._num_unread += 1

    def end(self) -> None:
        """Note that the loop asks for another batch, or is at the end."""
        is_needed = self._num_unread and self._value != self._plain and torch.is_grad_enabled()
        if self._warns and is_needed:
            self._warns = False
            warnings.warn(
                f"rank {self._rank}: a batch had {self._name} {str(self._value)[:6]}, and it was "
                f"not read before the next one was asked for, {self._consequence}. Or "
                f"{WITH_INFO}.",
                stacklevel=4,
            )

    def read(self) -> Any:
        """Return the value of the batch that was delivered last.

        Raises:
            RuntimeError: Before the first batch, or if the loop may mean an earlier one.
        """
        if not self._num_delivered:
            raise RuntimeError("no batch was delivered yet; read this inside the loop")
        self._lag, self._num_unread = max(self._lag, self._num_unread), 0
        if self._num_alike < self._lag:
            raise RuntimeError(
                f"rank {self._rank}: loader.{self._name} is that of the batch delivered last, and "
                f"{self._lag} were delivered before one was read: something fetches batches "
                f"ahead, so it may belong to another batch. {WITH_INFO.capitalize()}"
            )
        return self._value
