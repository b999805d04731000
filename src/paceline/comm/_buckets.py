"""The gradient buckets of PyTorch's DistributedDataParallel."""

from collections.abc import Sequence

DDP_FIRST_BUCKET_BYTES = 1 << 20
DDP_BUCKET_BYTES = 25 << 20


def ddp_buckets(
    gradient_bytes: Sequence[int],
    *,
    bucket_bytes: int = DDP_BUCKET_BYTES,
    first_bucket_bytes: int = DDP_FIRST_BUCKET_BYTES,
) -> tuple[tuple[int, ...], ...]:
    """Group gradients as DDP does: last first, a bucket closes once it is full.

    A bucket closes when its bytes reach the cap, so it may exceed it by one
    gradient; the first has a cap of its own, so that the wire starts early [1]. DDP
    regroups after the first step in the order in which gradients arrived; here that
    order is taken to be the reverse of the forward pass.

    Args:
        gradient_bytes: Bytes per layer in forward order; layers with 0 are left out.
        bucket_bytes: Cap of a bucket, positive (`bucket_cap_mb` in DDP).
        first_bucket_bytes: Cap of the first one.

    Returns:
        Layer indices per bucket, in the order of sending.

    Examples:
        >>> ddp_buckets([4, 4, 4, 4], bucket_bytes=8, first_bucket_bytes=1)
        ((3,), (2, 1), (0,))

    References:
        [1] S. Li et al., "PyTorch Distributed: experiences on accelerating data
        parallel training", VLDB 2020, section 4.2.
    """
    for name, cap in (("bucket_bytes", bucket_bytes), ("first_bucket_bytes", first_bucket_bytes)):
        if cap <= 0:
            raise ValueError(f"{name} must be positive, got {cap}")
    buckets: list[tuple[int, ...]] = []
    current: list[int] = []
    for layer in reversed(range(len(gradient_bytes))):
        if gradient_bytes[layer] > 0:
            current.append(layer)
        cap = bucket_bytes if buckets else min(first_bucket_bytes, bucket_bytes)
        if current and sum(gradient_bytes[index] for index in current) >= cap:
            buckets.append(tuple(current))
            current = []
    return (*buckets, tuple(current)) if current else tuple(buckets)
