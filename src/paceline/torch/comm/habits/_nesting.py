"""One wrapper averages gradients; a second one inside or around it is refused."""

import sys
from typing import NoReturn

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

FSDP = "torch.distributed.fsdp"


def check_bare(module: torch.nn.Module, own: type[torch.nn.Module], rank: int) -> None:
    """Raise `ValueError` if another data-parallel wrapper is `module` or lies in it."""
    wrappers: tuple[type[torch.nn.Module], ...]
    wrappers = (own, DistributedDataParallel, DataParallel, *_fully_sharded())
    for name, one in module.named_modules():
        if isinstance(one, wrappers):
            where = f"its {name!r}" if name else "it"
            raise ValueError(
                f"rank {rank}: ScheduledDataParallel takes a bare model, but {where} is a "
                f"{type(one).__name__}, which averages gradients by itself; pass "
                "what that wrapper holds (its .module)"
            )


def _fully_sharded() -> tuple[type[torch.nn.Module], ...]:
    """Return FSDP's wrapper if anybody imported it, which takes a second: else nothing is one."""
    return (sys.modules[FSDP].FullyShardedDataParallel,) if FSDP in sys.modules else ()


def check_outermost(rank: int) -> None:
    """Raise `ValueError` if DistributedDataParallel runs the present forward pass from outside."""
    if DistributedDataParallel._get_active_ddp_module() is not None:
        refuse_wrapping(rank)


def refuse_wrapping(rank: int) -> NoReturn:
    """Say that nothing may be wrapped around."""
    raise ValueError(
        f"rank {rank}: ScheduledDataParallel averages gradients by itself, but lies in a "
        "DistributedDataParallel, which would average them again; remove that one"
    )
