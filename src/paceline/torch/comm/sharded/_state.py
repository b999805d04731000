"""The sharded optimizer's state, seen from outside: whole on rank 0, never silently missing."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed as dist

from paceline.torch.comm.sharded._executor import ShardedExecutor
from paceline.torch.comm.sharded._layout import ShardLayout
from paceline.torch.comm.sharded._update import ShardedUpdate


def sharded_executor(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.Tensor],
    names: Sequence[str],
    group: dist.ProcessGroup,
    *,
    num_in_flight: int,
) -> ShardedExecutor:
    """Share `optimizer`'s work over the ranks of `group`.

    From now on `optimizer.state_dict()` raises, since no rank could answer alone;
    `optimizer.load_state_dict` keeps the own parts of a whole state.

    Raises:
        ValueError: If the optimizer does not update element by element.
    """
    layout = ShardLayout(parameters, dist.get_world_size(group))
    update = ShardedUpdate(optimizer, parameters, layout, dist.get_rank(group))
    optimizer.register_state_dict_pre_hook(_refuse)
    optimizer.register_load_state_dict_post_hook(lambda _: update.adopt())
    return ShardedExecutor(parameters, names, update, layout, group, num_in_flight=num_in_flight)


def whole_state_dict(
    optimizer: torch.optim.Optimizer,
    update: ShardedUpdate,
    parameters: Sequence[torch.Tensor],
    group: dist.ProcessGroup | None,
) -> dict[str, Any]:
    """Return what `optimizer.state_dict()` would without sharding; all ranks must call it.

    On rank 0, with tensors on the CPU; other ranks get an empty dictionary.
    """
    state = update.gathered_state(group)
    if dist.get_rank(group) != 0:
        return {}
    bare = object.__new__(type(optimizer))
    bare.__dict__.update(optimizer.__dict__)
    bare._optimizer_state_dict_pre_hooks = OrderedDict()
    bare.state = defaultdict(dict, {parameters[number]: one for number, one in state.items()})
    whole: dict[str, Any] = bare.state_dict()
    return whole


def _refuse(_optimizer: torch.optim.Optimizer) -> None:
    raise RuntimeError(
        "with sharded=True each rank holds a part of the optimizer's state; call "
        "model.optimizer_state_dict() on all ranks, and save what rank 0 gets"
    )
