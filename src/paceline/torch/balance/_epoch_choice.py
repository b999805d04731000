"""Whether `set_epoch` was called."""

import warnings
from dataclasses import dataclass


@dataclass(slots=True)
class EpochChoice:
    """Whether the next epoch was chosen, and whether to warn if it was not.

    Attributes:
        warns: Whether a forgotten choice is still to be warned of; once is enough, and
            without a shuffle no epoch differs from another.
        is_made: Whether the next epoch was chosen.
        begun: The epoch that was begun last.
    """

    warns: bool
    is_made: bool = True
    begun: int = -1

    def begin(self, epoch: int) -> None:
        """Note that `epoch` is in use; another one is to be chosen after it."""
        self.is_made, self.begun = False, epoch

    def next(self, epoch: int) -> int:
        """Return the epoch to begin: `epoch`, or the one that a forgotten choice goes on to."""
        if self.is_made:
            return epoch
        epoch, self.is_made = max(epoch, self.begun + 1), True
        if self.warns:
            self.warns = False
            warnings.warn(
                f"set_epoch was not called before epoch {epoch}; the sampler goes on to it by "
                "itself. Call set_epoch(epoch) before each epoch to choose it.",
                stacklevel=4,
            )
        return epoch
