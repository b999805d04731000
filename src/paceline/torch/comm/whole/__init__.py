"""Blocks whose gradients are all-reduced, and parameters updated whole on every rank."""

from paceline.torch.comm.whole._compression import (
    Compression,
    compress_hook,
    link_per_gradient_byte,
    wire_dtype,
)
from paceline.torch.comm.whole._executor import BlockExecutor
