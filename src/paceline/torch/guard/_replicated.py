"""What must be equal on all ranks: tensors, the plan of the data, the environment."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import DistributedSampler

import paceline
from paceline.torch.ranks import Facts

# `paceline.torch` imports this room at once, and loads that of samplers when it is used.
if TYPE_CHECKING:
    from paceline.torch.balance import BalancedBatchSampler

Data: TypeAlias = Union[TorchDataLoader[Any], "BalancedBatchSampler", DistributedSampler[Any]]


def bare_of(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside a data-parallel wrapper; all its updates have ended."""
    if isinstance(model, paceline.ScheduledDataParallel):
        model.flush()
    if isinstance(model, DistributedDataParallel | paceline.ScheduledDataParallel):
        inside: torch.nn.Module = model.module
        return inside
    return model


def replicated_tensors(
    model: torch.nn.Module, ignore: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and buffers that are to be equal on all ranks, by name.

    Without those that DistributedDataParallel was told to ignore, and the running statistics
    of normalization in training: each rank's are of its own batches.
    """
    bare = bare_of(model)
    local = {*ignore, *getattr(bare, "_ddp_params_and_buffers_to_ignore", ()), *_statistics(bare)}
    for named in (bare.named_parameters(), bare.named_buffers()):
        yield from ((name, tensor) for name, tensor in named if name not in local)


def environment(
    model: torch.nn.Module, data: Data | None, ignore: Collection[str]
) -> dict[str, str]:
    """Return what must agree before the first step, by what a user calls it."""
    tensors = {
        f"tensor {name!r}": f"{tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in replicated_tensors(model, ignore)
    }
    versions = {
        "paceline": paceline.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    named = {f"version of {name}": str(version) for name, version in versions.items()}
    return {**named, **({} if data is None else _data_facts(sampler_of(data))), **tensors}


def position(data: Data | None) -> Facts:
    """Return where the run stands in the data, and in which plan."""
    if data is None:
        return {}
    sampler = sampler_of(data)
    if isinstance(sampler, DistributedSampler):
        return {"epoch": str(sampler.epoch)}
    cursor = data.cursor if isinstance(data, paceline.DataLoader) else sampler.cursor
    place = {"epoch": str(cursor.epoch), "steps of the epoch": str(cursor.num_steps)}
    # At the start of an epoch there may be no plan: its order may be yet to be learnt.
    plan = sampler.planner.digest(cursor) if cursor.num_steps else "not begun"
    return {**place, "plan": plan}


def sampler_of(data: Data) -> "BalancedBatchSampler | DistributedSampler[Any]":
    """Return the sampler that decides which rank gets what.

    Raises:
        ValueError: If there is none that is known to depend on ranks.
    """
    found: object = data
    if isinstance(data, TorchDataLoader):
        is_batched = isinstance(data.batch_sampler, paceline.BalancedBatchSampler)
        found = data.batch_sampler if is_batched else data.sampler
    if not isinstance(found, paceline.BalancedBatchSampler | DistributedSampler):
        raise ValueError(
            "data must be a loader or sampler that splits examples over ranks (a paceline "
            "sampler or loader, or torch's DistributedSampler), got "
            f"{type(data).__name__} with {type(found).__name__}; leave data out to compare "
            "parameters only"
        )
    return found


def _data_facts(sampler: "BalancedBatchSampler | DistributedSampler[Any]") -> Facts:
    if isinstance(sampler, paceline.BalancedBatchSampler | paceline.BalancedSampler):
        return sampler.facts
    # torch leaves what a sampler may hold open.
    source: Any = sampler.dataset
    facts = {"number of examples": len(source), "num_replicas": sampler.num_replicas}
    own = {"seed": sampler.seed, "shuffle": sampler.shuffle, "drop_last": sampler.drop_last}
    return {name: str(value) for name, value in {**facts, **own}.items()}


def _statistics(model: torch.nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.training:
            yield from (f"{name}.{one}" if name else one for one, _ in module.named_buffers())
