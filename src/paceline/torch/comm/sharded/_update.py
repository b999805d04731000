"""Update the parts that this rank owns; the optimizer's state exists for them alone."""

import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributed as dist

from paceline.torch.comm.sharded._layout import Segment, ShardLayout
from paceline.torch.model import PartialUpdate
from paceline.torch.ranks import all_gather_bytes

# Each element's update depends on its own gradient and state alone.
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.ASGD,
    torch.optim.Rprop,
)
# State of these that is one number per parameter, whatever its shape.
NUMBERS = frozenset({"step", "eta", "mu", "mu_product"})


class ShardedUpdate:
    """Applies an optimizer to the parts of the parameters that this rank owns.

    A twin of the optimizer holds views of the parts in place of the parameters, so its
    state is that of the parts. The settings of the groups are the user's optimizer's.

    Args:
        optimizer: The user's; state that it holds already is cut to the own parts.
        parameters: Those that are trained.
        layout: Who owns what.
        rank: This rank.

    Raises:
        ValueError: If the optimizer does not update element by element.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[torch.Tensor],
        layout: ShardLayout,
        rank: int,
    ) -> None:
        check_elementwise(optimizer)
        self._optimizer, self._parameters, self._rank = optimizer, parameters, rank
        self._layout = layout
        self._number_of = {parameter: number for number, parameter in enumerate(parameters)}
        self.part_of: dict[Segment, torch.Tensor] = {}
        for tensor in range(len(parameters)):
            for segment in layout.segments_of(tensor):
                begin, end = segment.part(rank)
                if begin < end:
                    self.part_of[segment] = _flat(parameters[tensor])[begin:end]
        self._twin = object.__new__(type(optimizer))
        self._twin.__dict__.update(optimizer.__dict__)
        self._twin.state = defaultdict(dict)
        self._take_groups()
        self._update = PartialUpdate(self._twin)
        self.adopt()

    def adopt(self) -> None:
        """Take over the state of whole parameters that the optimizer holds, and free it."""
        state = self._optimizer.state
        self._twin.state.clear()
        for parameter, number in self._number_of.items():
            if parameter not in state:
                continue
            of_parameter = state.pop(parameter)
            for segment in self._layout.segments_of(number):
                if segment in self.part_of:
                    cut = self._cut(of_parameter, parameter, segment)
                    self._twin.state[self.part_of[segment]] = cut

    def begin(self) -> None:
        """Take the settings of all groups as they are now, and the parameters' values."""
        groups = self._optimizer.param_groups
        if [len(group["params"]) for group in groups] != self._num_owned:
            self._take_groups()
        for own, group in zip(self._twin.param_groups, groups, strict=True):
            own.update({key: value for key, value in group.items() if key != "params"})
        self._update.begin()
        for segment, part in self.part_of.items():
            parameter = self._parameters[segment.tensor]
            if not parameter.is_contiguous():
                begin, end = segment.part(self._rank)
                part.copy_(parameter.detach().reshape(-1)[begin:end])

    def apply(self, segments: Sequence[Segment], gradients: Sequence[torch.Tensor | None]) -> None:
        """Update the own parts of `segments`, by gradients of the same length."""
        self._update.apply([self.part_of[segment] for segment in segments], gradients)

    def whole_state_dict(
        self, optimizer: torch.optim.Optimizer, group: dist.ProcessGroup
    ) -> dict[str, Any]:
        """Return what `optimizer.state_dict()` would without sharding on rank 0, {} on others."""
        state = self.gathered_state(group)
        if self._rank != 0:
            return {}
        bare = object.__new__(type(optimizer))
        bare.__dict__.update(optimizer.__dict__)
        bare._optimizer_state_dict_pre_hooks = OrderedDict()
        bare.state = defaultdict(
            dict, {self._parameters[number]: one for number, one in state.items()}
        )
        whole: dict[str, Any] = bare.state_dict()
        return whole

    def gathered_state(
        self, group: dist.ProcessGroup | None, *, everywhere: bool = False
    ) -> dict[int, dict[str, Any]]:
        """Return the state of whole parameters on rank 0, by number, on the CPU; all must call it.

        Other ranks get nothing, and one parameter's state at a time is whole there; or, with
        `everywhere`, all get all of it, on the devices where an optimizer keeps it.
        """
        entries = self._entries()
        text = all_gather_bytes(json.dumps(entries).encode(), group)[0].decode()
        whole: dict[int, dict[str, Any]] = {}
        for number, key, dtype, plain, is_on_cpu in json.loads(text):
            if not dtype:
                value = plain
            elif plain is None:
                value = self._gathered(number, key, getattr(torch, dtype), group)
            else:
                value = torch.tensor(plain, dtype=getattr(torch, dtype))
            if everywhere and not is_on_cpu:
                value = value.to(self._parameters[number].device)
            if self._rank == 0 or everywhere:
                whole.setdefault(number, {})[key] = value
        return whole

    def _take_groups(self) -> None:
        groups = self._optimizer.param_groups
        self._num_owned = [len(group["params"]) for group in groups]
        self._twin.param_groups = [
            {**group, "params": list(self._parts(group["params"]))} for group in groups
        ]

    def give_back(self, group: dist.ProcessGroup) -> None:
        """Give the optimizer the state of whole parameters; all ranks must call it."""
        whole = self.gathered_state(group, everywhere=True)
        self.forget()
        for number, state in whole.items():
            self._optimizer.state[self._parameters[number]] = state

    def forget(self) -> bool:
        """Free the parts of the state; tell whether there were any."""
        had_any = any(
            isinstance(value, torch.Tensor) and value.dim() == 1
            for state in self._twin.state.values()
            for value in state.values()
        )
        self._twin.state.clear()
        return had_any

    def _parts(self, parameters: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        for parameter in parameters:
            if parameter in self._number_of:
                for segment in self._layout.segments_of(self._number_of[parameter]):
                    if segment in self.part_of:
                        yield self.part_of[segment]

    def _cut(
        self, state: dict[str, Any], parameter: torch.Tensor, segment: Segment
    ) -> dict[str, Any]:
        begin, end = segment.part(self._rank)
        cut = {}
        for key, value in state.items():
            is_whole = (
                isinstance(value, torch.Tensor)
                and key not in NUMBERS
                and value.shape == parameter.shape
            )
            cut[key] = value.reshape(-1)[begin:end].clone() if is_whole else _copy(value)
        return cut

    def _entries(self) -> list[tuple[int, str, str, Any, bool]]:
        """Parameter and name of every state, and what `_described` says of it."""
        entries = []
        for number, parameter in enumerate(self._parameters):
            first = next(iter(self._layout.segments_of(number)), None)
            if parameter.numel() and first in self.part_of:
                for key, value in self._twin.state.get(self.part_of[first], {}).items():
                    entries.append((number, key, *_described(value)))
        return entries

    def _gathered(
        self, number: int, key: str, dtype: torch.dtype, group: dist.ProcessGroup | None
    ) -> torch.Tensor:
        parameter = self._parameters[number]
        whole = torch.empty(parameter.numel(), dtype=dtype)
        for segment in self._layout.segments_of(number):
            row = torch.zeros(segment.width, dtype=dtype, device=parameter.device)
            if (part := self.part_of.get(segment)) is not None:
                row[: len(part)] = self._twin.state[part][key]
            rows = [torch.empty_like(row) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, row, group=group)
            flat = torch.cat(rows)[: segment.end - segment.begin]
            whole[segment.begin : segment.end] = flat.cpu()
        return whole.view(parameter.shape)


def check_elementwise(optimizer: torch.optim.Optimizer) -> None:
    """Raise `ValueError` unless each element's update is its own affair."""
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise ValueError(
            f"sharded=True updates parts of parameters, and {type(optimizer).__name__} is not "
            f"known to update each element by itself; use one of {names}, or sharded=False"
        )


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    """Return the elements in one row: a view where the layout allows, else a copy."""
    return parameter.detach().reshape(-1)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _described(value: Any) -> tuple[str, Any, bool]:
    """Return dtype (empty if no tensor), value (None if a part), and whether it is on the CPU."""
    if not isinstance(value, torch.Tensor):
        return "", value, True
    number = None if value.dim() == 1 else value.item()
    return str(value.dtype).removeprefix("torch."), number, value.device.type == "cpu"
