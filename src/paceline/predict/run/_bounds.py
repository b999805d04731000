"""What bounds a step, and what to change first.

The sustained shares of the data sheet's peaks are rough: they only say what bounds a step and
how it divides over layers.
"""

from collections.abc import Mapping

from paceline.predict.work import Bound, Device, LayerWork, MemoryEstimate, Workload

ATTAINED_FLOPS, ATTAINED_BANDWIDTH = 0.4, 0.7
# Seconds that a host needs per kernel.
LAUNCH_S = 8e-6
PASSES = 3.0


def layer_s(layer: LayerWork, workload: Workload, device: Device | None) -> float:
    """Return what a layer's forward pass takes by a roofline; only ratios matter."""
    if device is None:
        return layer.forward_flops + layer.moved_bytes + 1.0
    flops_s = layer.forward_flops / (ATTAINED_FLOPS * device.peak_flops(workload.precision_bits))
    bytes_s = layer.moved_bytes / (ATTAINED_BANDWIDTH * device.memory_bytes_per_s)
    return max(flops_s + bytes_s, max(layer.num_kernels, 1) * LAUNCH_S)


def roofline_parts(workload: Workload, device: Device | None) -> dict[Bound, float]:
    """Return seconds of arithmetic, of memory traffic, and the launches that outlast both."""
    if device is None:
        return {"compute": 1.0}
    peak = ATTAINED_FLOPS * device.peak_flops(workload.precision_bits)
    moved = workload.bytes_moved_per_example or 3 * workload.activation_bytes_per_example
    optimizer_bytes = 5.0 * workload.param_bytes
    compute_s = workload.train_flops_per_batch / peak
    memory_s = (PASSES * moved * workload.batch_size + optimizer_bytes) / (
        ATTAINED_BANDWIDTH * device.memory_bytes_per_s
    )
    launches = workload.num_operators or workload.num_kernels
    launch_s = PASSES * launches * LAUNCH_S
    return {
        "compute": compute_s,
        "memory": memory_s,
        "launch": max(launch_s - compute_s - memory_s, 0.0),
    }


def shares_of_step(
    parts: Mapping[Bound, float], *, compute_s: float, loader_s: float, link_s: float
) -> dict[Bound, float]:
    """Divide a step by what bounds it; `parts` are those of the compute time, in any unit.

    Examples:
        >>> shares_of_step({"compute": 3.0, "memory": 1.0}, compute_s=2.0, loader_s=2.0, link_s=0.0)
        {'compute': 0.375, 'memory': 0.125, 'loader': 0.5, 'link': 0.0}
    """
    whole = sum(parts.values()) or 1.0
    seconds: dict[Bound, float] = {name: value / whole * compute_s for name, value in parts.items()}
    seconds |= {"loader": loader_s, "link": link_s}
    total = sum(seconds.values()) or 1.0
    return {name: value / total for name, value in seconds.items()}


def what_to_change(
    bound_by: Bound,
    workload: Workload,
    memory: MemoryEstimate,
    device: Device | None,
    *,
    saved_over_ddp: str,
) -> str:
    """Return what to change first; `saved_over_ddp` says what the schedule does already."""
    if device is not None and not memory.fits(device):
        largest = memory.largest_batch(device)
        return (
            f"it does not fit: take at most {largest} examples per step and worker"
            if largest
            else "it does not fit with any batch: shard the parameters or take a larger device"
        )
    if bound_by in ("compute", "memory") and workload.precision_bits == 32 and device is not None:
        return "use mixed precision (precision 16), then a larger batch"
    return {
        "compute": "arithmetic bounds it: take a faster device or more workers",
        "memory": "memory traffic bounds it: fuse operators (torch.compile) or recompute less",
        "launch": _launch_advice(workload, memory, device),
        "loader": "the loader bounds it: more loader processes, or keep decoded data",
        "link": f"the wire bounds it: {saved_over_ddp}; raise the batch per worker, accumulate "
        "gradients or take a faster link",
    }[bound_by]


def _launch_advice(workload: Workload, memory: MemoryEstimate, device: Device | None) -> str:
    largest = memory.largest_batch(device) if device is not None else 0
    room = f"; up to {largest} examples fit" if largest > workload.batch_size else ""
    return f"launching operators bounds it: raise the batch{room}, or use torch.compile"
