"""Update some parameters of an optimizer now and the rest later."""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from operator import is_not
from typing import Any

import torch
from torch.optim import optimizer as optimizer_module


class PartialUpdate:
    """Applies one step of an optimizer parameter by parameter.

    Results are bit for bit those of a single `step()`, for every optimizer whose state is
    kept per parameter; in `torch.optim` that is all of them except LBFGS.

    A twin of the optimizer does the work: it shares the state, but holds aliases of the parameters
    with gradients of their own. So the user may clear `.grad` meanwhile, and settings such as the
    learning rate are those that `begin` found, whatever a scheduler does afterwards.

    Raises:
        ValueError: If the optimizer is LBFGS, which needs all gradients at once.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError(
                "the optimizer must keep its state per parameter, but LBFGS needs all gradients "
                "at once; use DistributedDataParallel with it"
            )
        self._optimizer = optimizer
        self._settings: list[dict[str, Any]] = []
        self._group_of: dict[torch.Tensor, int] = {}

    def begin(self) -> None:
        """Take the settings of all groups as they are now, for the updates that follow."""
        groups = self._optimizer.param_groups
        self._settings = [
            {key: _frozen(value) for key, value in group.items() if key != "params"}
            for group in groups
        ]
        owned = [parameter for group in groups for parameter in group["params"]]
        if len(owned) != len(self._group_of) or any(map(is_not, owned, self._group_of)):
            self._group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}

    def apply(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None]
    ) -> None:
        """Update `parameters` by `gradients`; those without gradient or group are left alone."""
        members: dict[int, list[torch.Tensor]] = {}
        alias_of: dict[torch.Tensor, torch.Tensor] = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter in self._group_of:
                alias = alias_of[parameter] = parameter.detach()
                alias.grad = gradient
                members.setdefault(self._group_of[parameter], []).append(alias)
        if members:
            self._step(members, alias_of)

    def rest(self, managed: Collection[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Return the optimizer's parameters that are not in `managed` and have a gradient."""
        return (p for p in self._group_of if p not in managed and p.grad is not None)

    def run_hooks(self, *, before: bool) -> None:
        """Run the optimizer's step hooks, as `step()` would before or after its work."""
        when = "pre" if before else "post"
        own = getattr(self._optimizer, f"_optimizer_step_{when}_hooks")
        everywhere = getattr(optimizer_module, f"_global_optimizer_{when}_hooks")
        # In the order of `step()`: the hooks of every optimizer are the outer ones.
        order = (everywhere, own) if before else (own, everywhere)
        for hook in list(chain.from_iterable(hooks.values() for hooks in order)):
            hook(self._optimizer, (self._optimizer,), {})
        # Set by `step()` otherwise; schedulers warn when it is missing.
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # private to schedulers

    def _step(
        self, members: dict[int, list[torch.Tensor]], alias_of: dict[torch.Tensor, torch.Tensor]
    ) -> None:
        state = self._optimizer.state
        twin = object.__new__(type(self._optimizer))
        twin.__dict__.update(self._optimizer.__dict__)
        twin.__dict__.pop("step", None)  # Schedulers put one here that is bound to the original.
        twin._optimizer_step_pre_hooks = OrderedDict()
        twin._optimizer_step_post_hooks = OrderedDict()
        twin.param_groups = [
            {"params": members[number], **self._settings[number]} for number in sorted(members)
        ]
        twin.state = defaultdict(
            dict, {alias: state[own] for own, alias in alias_of.items() if own in state}
        )
        # The bare step: its wrapper runs the hooks, which `run_hooks` does once per step.
        type(self._optimizer).step.__wrapped__(twin)  # type: ignore[attr-defined]  # functools.wraps
        for parameter, alias in alias_of.items():
            if alias in twin.state:
                state[parameter] = twin.state[alias]


def _frozen(value: Any) -> Any:
    """Schedulers change a learning rate that is a tensor in place."""
    return value.clone() if isinstance(value, torch.Tensor) else value
