"""What may walk a plan: the same calls, with whole updates or with sharded ones."""

from paceline.torch._block_executor import BlockExecutor
from paceline.torch._sharded import ShardedExecutor

Executor = BlockExecutor | ShardedExecutor
