"""Blocks that are reduce-scattered, updated in shards and all-gathered."""

from paceline.torch.comm.sharded._custody import Custody
from paceline.torch.comm.sharded._executor import ShardedExecutor
from paceline.torch.comm.sharded._layout import ShardLayout
from paceline.torch.comm.sharded._update import ShardedUpdate
