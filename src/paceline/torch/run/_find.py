"""Find the model that an optimizer trains, in a process whose script is not ours."""

import gc
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

# Where the other wrappers live. A script that has not loaded one has none of it.
OTHERS = {
    "torch.distributed.fsdp": ("FullyShardedDataParallel", "FSDPModule"),
    "paceline.torch.comm": ("ScheduledDataParallel",),
}
MAX_FOUND = 8


def is_parallel(module: torch.nn.Module) -> bool:
    """Return whether `module` averages or shards gradients over ranks."""
    kinds: list[Any] = [DistributedDataParallel]
    for room, names in OTHERS.items():
        if room in sys.modules:
            kinds += [getattr(sys.modules[room], name) for name in names]
    return isinstance(module, tuple(kinds))


def is_plain(model: torch.nn.Module) -> bool:
    """Return whether `model` is on a CPU and nothing but DDP is around it or inside it."""
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    return all(one.is_cpu for one in model.parameters()) and not any(
        map(is_parallel, inner.modules())
    )


def modules_trained_by(optimizer: torch.optim.Optimizer) -> list[torch.nn.Module]:
    """Return modules that hold parameters of `optimizer`, likely ones first.

    Data-parallel wrappers come first, then whole models, then their largest parts, for models
    that are never called as a whole. Looks through all objects: call it once.
    """
    trained = {id(one) for group in optimizer.param_groups for one in group["params"]}
    # The type, not isinstance: that would wake up proxies that import on demand.
    modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
    size = {id(one): _num_trained(one, trained) for one in modules}
    holders = sorted((one for one in modules if size[id(one)]), key=lambda one: -size[id(one)])
    inner = {id(child) for one in holders for child in one.children()}
    roots = [one for one in holders if id(one) not in inner]
    wrappers = [one for one in holders if is_parallel(one)]
    parts = _largest_parts(roots[0], size) if roots else []
    return _distinct([*_outer_first(wrappers), *roots, *parts])[:MAX_FOUND]


def _num_trained(module: torch.nn.Module, trained: set[int]) -> int:
    try:
        return sum(one.numel() for one in module.parameters() if id(one) in trained)
    except AttributeError:  # A module whose __init__ did not run to its end.
        return 0


def _outer_first(wrappers: list[torch.nn.Module]) -> list[torch.nn.Module]:
    return sorted(wrappers, key=lambda one: -sum(1 for _ in one.modules()))


def _largest_parts(module: torch.nn.Module, size: dict[int, int]) -> list[torch.nn.Module]:
    parts = []
    while children := list(module.children()):
        module = max(children, key=lambda child: size.get(id(child), 0))
        parts.append(module)
    return parts


def _distinct(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    return list({id(one): one for one in modules}.values())
