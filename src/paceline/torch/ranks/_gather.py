"""Gather what ranks measured."""

import io
import uuid

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from paceline.timeline import COLUMNS, Timeline
from paceline.torch.ranks._meeting import MEETING_S, meet
from paceline.torch.ranks._replica import Group, process_group_of


def gather_timeline(
    timeline: Timeline, process_group: Group | None = None, *, timeout_s: float = MEETING_S
) -> Timeline:
    """Return the spans of all ranks, on every rank; all must call it.

    Sends plain arrays, never pickled objects. Clocks are left as they are: see
    `Timeline.aligned`. `process_group` may be one axis of a device mesh; unset for the
    default group.

    Raises:
        RankStalledError: If a rank does not call it within `timeout_s` seconds; names it.
    """
    group = process_group_of(process_group)
    meet("gather, summary or gather_timeline", group, timeout_s=timeout_s)
    blobs = all_gather_bytes(_to_bytes(timeline), group)
    return Timeline.merge([_from_bytes(blob) for blob in blobs])


def _to_bytes(timeline: Timeline) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        source=np.array(timeline.source),
        lanes=np.array(timeline.lanes, dtype=np.str_),
        names=np.array(timeline.names, dtype=np.str_),
        **{column: getattr(timeline, column) for column in COLUMNS},
    )
    return buffer.getvalue()


def _from_bytes(blob: bytes) -> Timeline:
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return Timeline(
            source=str(arrays["source"]),  # type: ignore[arg-type]  # checked by Timeline
            lanes=tuple(arrays["lanes"].tolist()),
            names=tuple(arrays["names"].tolist()),
            **{column: arrays[column] for column in COLUMNS},
        )


def all_gather_bytes(blob: bytes, group: dist.ProcessGroup | None) -> list[bytes]:
    device = device_of(group)
    world_size = dist.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size)]
    dist.all_gather(lengths, torch.tensor([len(blob)], device=device), group=group)
    sizes = [int(length) for length in lengths]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(blob)] = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    parts = [torch.zeros(max(sizes), dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(parts, padded.to(device), group=group)
    return [part[:size].cpu().numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]


def fresh_key(group: dist.ProcessGroup | None) -> str:
    """Return a key that was never used, the same on every rank; all must call it."""
    return all_gather_bytes(uuid.uuid4().hex.encode(), group)[0].decode()


def device_of(group: dist.ProcessGroup | None) -> torch.device:
    """Return the device of the tensors that `group` sends."""
    is_nccl = "nccl" in dist.get_backend(group)
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")


def from_rank_0(
    values: NDArray[np.float64], group: dist.ProcessGroup | None
) -> NDArray[np.float64]:
    """Return rank 0's values on every rank; all must call it."""
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(device_of(group))
    dist.broadcast(tensor, group=group, group_src=0)
    return tensor.cpu().numpy()
