"""Which gradient block travels when."""

from paceline.comm._buckets import ddp_buckets

__all__ = ["ddp_buckets"]
