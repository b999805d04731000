"""What may walk a plan: the same calls, with whole updates or with sharded ones."""

from paceline.torch.comm.sharded import ShardedExecutor
from paceline.torch.comm.whole import BlockExecutor

Executor = BlockExecutor | ShardedExecutor
