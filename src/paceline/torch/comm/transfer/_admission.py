"""What is refused before ranks tell each other anything."""

import torch
from torch import distributed as dist
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from paceline.torch.ranks import Group, process_group_of


def checked_group(process_group: Group | None) -> dist.ProcessGroup | None:
    """Return the group that is meant.

    Raises:
        ValueError: If there is none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("there is no process group; call torch.distributed.init_process_group")
    return process_group_of(process_group)


def check_plain_tensors(module: torch.nn.Module) -> None:
    """Refuse parameters whose elements lie elsewhere, as those of FSDP and tensor parallelism.

    Raises:
        ValueError: Names the first one.
    """
    for name, parameter in module.named_parameters():
        # A parameter made of another tensor type keeps that type.
        if is_traceable_wrapper_subclass(parameter):
            raise ValueError(
                f"parameters must be plain tensors, but on rank {dist.get_rank()} {name!r} is a "
                f"{type(parameter).__name__}; leave out fully_shard and parallelize_module, and "
                "pass sharded=True to divide the optimizer's state"
            )


def check_sharded(compression: str | None) -> None:
    """Refuse to compress what is sent in shards.

    Raises:
        ValueError: If `compression` is given.
    """
    if compression is not None:
        raise ValueError(
            f"sharded=True sends gradients as they are, got compression={compression!r}; "
            "leave one of them out"
        )
