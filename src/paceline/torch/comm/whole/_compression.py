"""Send gradients in half precision."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # not in its stubs
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)

from paceline.cost import Link
from paceline.torch.ranks import device_of

Future = torch.futures.Future[torch.Tensor]
Compression = Literal["fp16", "bf16"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def wire_dtype(
    compression: Compression | None, group: dist.ProcessGroup | None
) -> torch.dtype | None:
    """Return the type that gradients are sent in, None for their own; all ranks must call it.

    Adds up one number in that type, so that a backend which cannot is refused here and
    not in the middle of a backward pass.

    Raises:
        ValueError: If there is no such compression, or the backend does not add up the type.
    """
    if compression is None:
        return None
    if compression not in DTYPES:
        raise ValueError(
            f"compression must be None, {' or '.join(map(repr, DTYPES))}, got {compression!r}; "
            "PowerSGD runs as the inner hook of watch_buckets with DistributedDataParallel"
        )
    dtype = DTYPES[compression]
    try:
        dist.all_reduce(torch.ones(1, dtype=dtype, device=device_of(group)), group=group)
    except RuntimeError as error:
        # A connection that broke is no matter of the type.
        if "scalar type" not in str(error) and "data type" not in str(error):
            raise
        raise ValueError(
            f"compression={compression!r} needs a backend that adds up {dtype}, but "
            f"{dist.get_backend(group)} does not ({error}); use 'fp16', or leave it unset"
        ) from error
    return dtype


def dtype_on_wire(dtype: torch.dtype, wire: torch.dtype | None) -> torch.dtype:
    """Return `wire` for gradients that are wider, their own type for all others.

    Examples:
        >>> dtype_on_wire(torch.float32, torch.float16), dtype_on_wire(torch.bfloat16, None)
        (torch.float16, torch.bfloat16)
        >>> dtype_on_wire(torch.bfloat16, torch.float16)
        torch.bfloat16
    """
    return wire if wire is not None and wire.itemsize < dtype.itemsize else dtype


def compress_hook(wire: torch.dtype) -> Callable[[Any, GradBucket], Future]:
    """Return torch's hook that sends DistributedDataParallel's buckets so.

    Under a name of its own: DDP refuses `bf16_compress_hook` by name where there is no CUDA,
    though gloo adds that type up.
    """
    torchs = fp16_compress_hook if wire == torch.float16 else bf16_compress_hook

    def hook(state: Any, bucket: GradBucket) -> Future:
        return torchs(state, bucket)

    return hook


def link_per_gradient_byte(
    link: Link, parameters: Sequence[torch.Tensor], wire: torch.dtype | None
) -> Link:
    """Return the link as plans see it, whose bytes are those of the gradients.

    Where only some parameters are narrowed, all are taken to be narrowed a little.
    """
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    on_wire = sum(
        parameter.numel() * dtype_on_wire(parameter.dtype, wire).itemsize
        for parameter in parameters
    )
    return Link(link.alpha_s, link.bytes_per_s * num_bytes / on_wire) if on_wire else link
