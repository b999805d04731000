"""What the ranks of a checkpoint tell each other: random states, what they save, what failed."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from torch import distributed as dist

from paceline.errors import CheckpointError
from paceline.torch.checkpoint._tree import encode
from paceline.torch.ranks import all_gather_bytes


def gather(about: Mapping[str, Any], group: dist.ProcessGroup | None) -> list[dict[str, Any]]:
    """Return what each rank passed, plain values; all ranks must call it."""
    if group is None:
        return [dict(about)]
    return [json.loads(one) for one in all_gather_bytes(json.dumps(about).encode(), group)]


def about_to_save(
    step: int, states: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the other ranks must know of what this one is to save.

    Args:
        step: Steps that were made.
        states: By name; must be equal on all ranks.
        training: Only checked for what cannot be saved.
    """
    told: dict[str, Any] = {"step": step, "digests": {}, "refused": None}
    try:
        encode(training)
        told["digests"] = {name: _digest_of({name: one}) for name, one in states.items()}
    except ValueError as error:
        told["refused"] = str(error)
    return told


def check_alike(told: list[dict[str, Any]]) -> None:
    """Check what all ranks told by `about_to_save`.

    Raises:
        ValueError: If a rank holds what cannot be saved.
        CheckpointError: If a rank differs from rank 0.
    """
    first = told[0]
    for rank, one in enumerate(told):
        if one["refused"] is not None:
            raise ValueError(f"rank {rank}: {one['refused']}")
        if one["step"] != first["step"]:
            raise CheckpointError(
                f"rank {rank} saves step {one['step']}, and rank 0 step {first['step']}; all ranks "
                "must call save after the same step"
            )
        for name, digest in one["digests"].items():
            if digest != first["digests"].get(name):
                raise CheckpointError(
                    f"the state of {name!r} on rank {rank} is not that of rank 0, which would be "
                    "saved for all; make it equal on all ranks, or leave it out"
                )


def _digest_of(state: Any) -> str:
    """Return a checksum of the plain values in `state`, and of the kinds of its tensors."""
    tree, tensors = encode(state)
    kinds = [[name, str(one.dtype), list(one.shape)] for name, one in tensors.items()]
    return sha256(json.dumps([tree, kinds]).encode()).hexdigest()
