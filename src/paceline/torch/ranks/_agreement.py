"""Start all ranks from the same model, and keep its buffers the same."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore

from paceline.errors import PlanMismatchError
from paceline.torch.ranks._gather import all_gather_bytes, fresh_key


def check_same_model(module: torch.nn.Module, group: dist.ProcessGroup | None) -> None:
    """Compare names, shapes and dtypes over all ranks; all must call it.

    Raises:
        PlanMismatchError: On every rank, if one differs from rank 0; the message names
            it and the first entry that differs.
    """
    own = "\n".join(_entries(module))
    texts = [blob.decode() for blob in all_gather_bytes(own.encode(), group)]
    for rank, text in enumerate(texts):
        if text != texts[0]:
            first, other = _first_difference(texts[0].split("\n"), text.split("\n"))
            raise PlanMismatchError(
                f"all ranks must build the same model, but rank {rank} has {other} where rank 0 "
                f"has {first}; build it from the same configuration everywhere"
            )


def check_same_plan(digest: str, group: dist.ProcessGroup | None) -> None:
    """Compare the plan's digest over all ranks; all must call it.

    Raises:
        PlanMismatchError: On every rank, if one differs from rank 0.
    """
    digests = all_gather_bytes(digest.encode(), group)
    different = [rank for rank, one in enumerate(digests) if one != digests[0]]
    if different:
        raise PlanMismatchError(
            f"all ranks must send the same blocks, but rank {different[0]} planned others than "
            "rank 0; pass the same plan= and run the same version of Paceline everywhere"
        )


def broadcast_from_rank_0(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrite `tensors` with rank 0's, in one message per dtype and device."""
    alike: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.dtype, tensor.device), []).append(tensor.detach())
    for members in alike.values():
        flat = torch.cat([member.reshape(-1) for member in members])
        dist.broadcast(flat, group=group, group_src=0)
        parts = flat.split([member.numel() for member in members])
        for member, part in zip(members, parts, strict=True):
            member.copy_(part.view(member.shape))


def new_group_like(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return another group of the same ranks, with collectives of its own.

    Collectives of one group must run in the same order everywhere. The executor sends while
    the main thread may be in a collective of the user's, so it cannot share a group.
    """
    like = group if group is not None else dist.group.WORLD
    if like is None:
        raise ValueError("there is no process group; call torch.distributed.init_process_group")
    device = torch.device("cuda" if "nccl" in dist.get_backend(group) else "cpu")
    timeout = like._get_backend(device).options._timeout
    with _own_keys(fresh_key(group)):
        made = dist.new_group(
            dist.get_process_group_ranks(like),
            timeout=timeout,
            backend=dist.get_backend(group),
            use_local_synchronization=group is not None,
        )
    if not isinstance(made, dist.ProcessGroup):
        raise ValueError("this process must be a member of group")
    return made


def end_group(group: dist.ProcessGroup) -> None:
    """Destroy what `new_group_like` made, unless all groups were destroyed before.

    Its threads and connections end with the last reference to it.
    """
    with suppress(ValueError):
        dist.destroy_process_group(group)


@contextmanager
def _own_keys(key: str) -> Iterator[None]:
    """Let groups meet under `key`: torch numbers them, and takes the number of a destroyed one.

    The addresses that its ranks had are still in the store then.
    """
    stores: Any = dist.distributed_c10d._world.pg_map
    backend, store = stores[dist.group.WORLD]
    stores[dist.group.WORLD] = backend, PrefixStore(f"paceline/{key}", store)
    try:
        yield
    finally:
        stores[dist.group.WORLD] = backend, store


def _entries(module: torch.nn.Module) -> list[str]:
    parameters = [
        f"parameter {name!r} {tuple(one.shape)} {one.dtype}{'' if one.requires_grad else ' frozen'}"
        for name, one in module.named_parameters()
    ]
    buffers = [
        f"buffer {name!r} {tuple(one.shape)} {one.dtype}" for name, one in module.named_buffers()
    ]
    return parameters + buffers


def _first_difference(first: list[str], other: list[str]) -> tuple[str, str]:
    for here, there in zip(first, other, strict=False):
        if here != there:
            return here, there
    common = min(len(first), len(other))
    return (first[common:] or ["nothing"])[0], (other[common:] or ["nothing"])[0]
