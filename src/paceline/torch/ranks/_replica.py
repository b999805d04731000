"""Which of how many data-parallel replicas this process is."""

import os
from dataclasses import dataclass

from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

Group = dist.ProcessGroup | DeviceMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One of several data-parallel ranks, where no process group says which.

    Attributes:
        rank: Which one, from 0 up.
        num_replicas: How many there are.

    Raises:
        ValueError: If there is no such rank.
    """

    rank: int
    num_replicas: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(
                f"rank must lie in [0, num_replicas), got rank {self.rank} of {self.num_replicas}"
            )


def replica_of(
    process_group: Group | Replica | None = None,
    *,
    num_replicas: int | None = None,
    rank: int | None = None,
) -> Replica:
    """Return the number of replicas and the rank of this process among them.

    Explicit arguments come first, then the variables `RANK` and `WORLD_SIZE` that torchrun
    sets, then the default process group, if there is one; else it is a single process.

    Raises:
        ValueError: If the numbers contradict each other, or only one of them is known, such as
            `WORLD_SIZE` above 1 without `RANK` before there is a process group.
    """
    if process_group is None:
        return _from_numbers(num_replicas, rank)
    if (num_replicas, rank) != (None, None):
        raise ValueError("pass either process_group, or num_replicas and rank, not both")
    if isinstance(process_group, Replica):
        return process_group
    return _from_group(process_group_of(process_group))


def data_ranks_of(
    process_group: Group | Replica | None, data_axis: str | None
) -> tuple[Group | Replica | None, dist.ProcessGroup | None]:
    """Return the ranks that share the data, and the group of all that must have one plan.

    Args:
        process_group: With a `data_axis`, a device mesh of all ranks.
        data_axis: Its axis that shares the data; ranks that differ in others get the same examples.
            Unset, only the ranks that share the data compare their plans: None for the second.

    Raises:
        ValueError: If there is no such axis, or the mesh leaves ranks out.
    """
    if data_axis is None:
        return process_group, None
    names = process_group.mesh_dim_names or () if isinstance(process_group, DeviceMesh) else ()
    if not isinstance(process_group, DeviceMesh) or data_axis not in names:
        raise ValueError(
            f"data_axis={data_axis!r} needs a device mesh with such an axis as process_group, got "
            f"{type(process_group).__name__} with the axes {tuple(names)}"
        )
    if process_group.size() != dist.get_world_size():
        raise ValueError(
            f"data_axis needs a mesh of all {dist.get_world_size()} ranks, got one of "
            f"{process_group.size()}; pass process_group=mesh[{data_axis!r}] without data_axis"
        )
    return process_group[data_axis], dist.group.WORLD


def process_group_of(
    process_group: Group | Replica | None, num_replicas: int | None = None
) -> dist.ProcessGroup | None:
    """Return the process group that `process_group` names; None is torch's default group.

    Args:
        process_group: A process group, or one axis of a device mesh.
        num_replicas: If given, and no group is: return the default group if it has as many
            ranks, else None, since the replicas have no group then.

    Raises:
        ValueError: If the mesh has several axes.
    """
    if isinstance(process_group, DeviceMesh):
        if process_group.ndim != 1:
            raise ValueError(
                "process_group must be one axis of the device mesh, got "
                f"{process_group.ndim} axes {process_group.mesh_dim_names}; pass the data-parallel "
                "one, such as mesh['dp']"
            )
        return process_group.get_group()
    if process_group is not None and not isinstance(process_group, Replica):
        return process_group
    is_default = num_replicas is not None and _has_default_group()
    return dist.group.WORLD if is_default and dist.get_world_size() == num_replicas else None


def _from_numbers(num_replicas: int | None, rank: int | None) -> Replica:
    """Take from the surroundings what was not passed."""
    if num_replicas is not None and rank is not None:
        return Replica(rank=rank, num_replicas=num_replicas)
    found = _from_environment()
    if found is None and _has_default_group():
        found = _from_group(None)
    if found is None and (num_replicas or 1, rank or 0) != (1, 0):
        raise ValueError(
            f"num_replicas={num_replicas} and rank={rank} do not say which replica this is; "
            "pass both, or start the job with torchrun"
        )
    if found is None and num_replicas is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but neither RANK nor a process group says "
            "which rank this is; make the sampler after init_process_group (in Lightning, in "
            "train_dataloader()), or pass process_group=Replica(rank=..., num_replicas=...)"
        )
    found = found or Replica(rank=0, num_replicas=1)
    return Replica(
        rank=found.rank if rank is None else rank,
        num_replicas=found.num_replicas if num_replicas is None else num_replicas,
    )


def _from_group(group: dist.ProcessGroup | None) -> Replica:
    return Replica(rank=dist.get_rank(group), num_replicas=dist.get_world_size(group))


def _from_environment() -> Replica | None:
    world_size, rank = os.environ.get("WORLD_SIZE"), os.environ.get("RANK")
    if world_size is None or rank is None:
        return None
    return Replica(rank=int(rank), num_replicas=int(world_size))


def _has_default_group() -> bool:
    return dist.is_available() and dist.is_initialized()
