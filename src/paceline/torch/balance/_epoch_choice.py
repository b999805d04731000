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
    """

    warns: bool
    is_made: bool = True

    def make_up(self, epoch: int) -> None:
        """Note that a sampler went on to `epoch` by itself, and say so once."""
        self.is_made = True
        if self.warns:
            self.warns = False
            warnings.warn(
                f"set_epoch was not called before epoch {epoch}; the sampler goes on to it by "
                "itself. Call set_epoch(epoch) before each epoch to choose it.",
                stacklevel=3,
            )
