"""Save runs and resume them: atomic, checksummed, without pickle."""

from paceline.torch.checkpoint._async_checkpoint import AsyncCheckpoint
from paceline.torch.checkpoint._checkpoint import Checkpoint
from paceline.torch.checkpoint._pending import PendingCheckpoint

__all__ = ["AsyncCheckpoint", "Checkpoint", "PendingCheckpoint"]
