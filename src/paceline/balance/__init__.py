"""Which worker gets which example."""

from paceline.balance._padded import Partition, split_padded

__all__ = ["Partition", "split_padded"]
