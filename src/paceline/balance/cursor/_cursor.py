"""Where a run stands in the data, and how it goes on with another number of workers.

An epoch is a list of *segments*: steps that one set of workers delivered. Each plans
what the ones before it left over, in the order in which they would have gone on. With a
window of 1 the global batches stay the same, whoever shares them.
"""

from dataclasses import dataclass

from paceline.balance.cursor._state import Segment
from paceline.cost import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a run stands in the data; equal on every rank.

    Attributes:
        workers: Speed and overhead of each present worker.
        epoch: Number of the epoch.
        num_steps: Steps that the present workers delivered in this epoch.
        earlier: What other workers delivered of it before.
    """

    workers: tuple[Worker, ...]
    epoch: int = 0
    num_steps: int = 0
    earlier: tuple[Segment, ...] = ()

    def at_epoch(self, epoch: int) -> "Cursor":
        """Return the start of `epoch` with the same workers."""
        return Cursor(workers=self.workers, epoch=epoch)

    def at_step(self, num_steps: int) -> "Cursor":
        """Return where the present workers have delivered `num_steps` of the epoch."""
        return Cursor(
            workers=self.workers, epoch=self.epoch, num_steps=num_steps, earlier=self.earlier
        )
