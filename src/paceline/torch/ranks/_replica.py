"""Which of how many data-parallel replicas this process is."""

import os

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

Group = dist.ProcessGroup | DeviceMesh


def replica_of(num_replicas: int | None, rank: int | None, group: Group | None) -> tuple[int, int]:
    """Return the number of replicas and the rank of this process among them.

    Explicit arguments come first, then the variables `RANK` and `WORLD_SIZE` that torchrun
    sets, then the process group, if there is one; else it is a single process.

    Raises:
        ValueError: If the numbers contradict each other, or only one of them is known.
    """
    if group is not None and (num_replicas, rank) != (None, None):
        raise ValueError("pass either group, or num_replicas and rank, not both")
    found = _from_arguments(num_replicas, rank) if group is None else _from_group(group)
    if not 0 <= found[1] < found[0]:
        raise ValueError(f"rank must lie in [0, num_replicas), got rank {found[1]} of {found[0]}")
    return found


def process_group_of(group: Group | None, num_replicas: int) -> dist.ProcessGroup | None:
    """Return the process group in which the replicas can talk; None if there is none."""
    if isinstance(group, DeviceMesh):
        return group.get_group()
    if group is not None:
        return group
    if not (dist.is_available() and dist.is_initialized()):
        return None
    is_world = dist.get_world_size() == num_replicas
    return dist.group.WORLD if is_world else None


def _from_arguments(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Take from the surroundings what was not passed."""
    if num_replicas is not None and rank is not None:
        return num_replicas, rank
    around = _from_environment() or _from_default_group()
    if around is None and (num_replicas or 1, rank or 0) != (1, 0):
        raise ValueError(
            f"num_replicas={num_replicas} and rank={rank} do not say which replica this is; "
            "pass both, or start the job with torchrun"
        )
    world_size, own_rank = around or (1, 0)
    size = world_size if num_replicas is None else num_replicas
    return size, own_rank if rank is None else rank


def _from_group(group: Group) -> tuple[int, int]:
    if not isinstance(group, DeviceMesh):
        return dist.get_world_size(group), dist.get_rank(group)
    if group.ndim != 1:
        raise ValueError(
            f"group must be one axis of the device mesh, got {group.ndim} axes "
            f"{group.mesh_dim_names}; pass the data-parallel one, such as mesh['dp']"
        )
    return group.size(), group.get_local_rank()


def _from_environment() -> tuple[int, int] | None:
    world_size, rank = os.environ.get("WORLD_SIZE"), os.environ.get("RANK")
    return None if world_size is None or rank is None else (int(world_size), int(rank))


def _from_default_group() -> tuple[int, int] | None:
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.get_world_size(), dist.get_rank()
