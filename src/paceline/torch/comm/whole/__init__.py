"""Blocks whose gradients are all-reduced, and parameters updated whole on every rank."""

from paceline.torch.comm.whole._compression import (
    Compression,
    compress_hook,
    link_per_gradient_byte,
    wire_dtype,
)
from paceline.torch.comm.whole._executor import BlockExecutor
from paceline.torch.comm.whole._layout import Payload, Piece, payloads_of
from paceline.torch.comm.whole._round import Route, dense_gradient
from paceline.torch.comm.whole._transfer_failure import transfer_failure
from paceline.torch.comm.whole._waiting import Waiting

__all__ = [
    "BlockExecutor",
    "Compression",
    "Payload",
    "Piece",
    "Route",
    "Waiting",
    "compress_hook",
    "dense_gradient",
    "link_per_gradient_byte",
    "payloads_of",
    "transfer_failure",
    "wire_dtype",
]
