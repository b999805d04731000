"""Blocks that are reduce-scattered, updated in shards and all-gathered."""

from paceline.torch.comm.sharded._executor import ShardedExecutor
from paceline.torch.comm.sharded._state import sharded_executor, whole_state_dict

__all__ = ["ShardedExecutor", "sharded_executor", "whole_state_dict"]
