"""Which parameters belong to whom: the optimizer's are the model's, and stay so."""

from itertools import chain
from operator import is_not
from warnings import warn

import torch

MOST_NAMES = 3


class Ownership:
    """Holds an optimizer to the parameters that are trained.

    Args:
        module: The model.
        optimizer: Updates its parameters.
        rank: For messages.

    Raises:
        TypeError: If `optimizer` is none.
        ValueError: If it updates parameters that are not the model's. Warns of those of the
            model that require gradients and that it leaves out.
    """

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, rank: int
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"rank {rank}: the second argument must be an optimizer, got "
                f"{type(optimizer).__name__}; call ScheduledDataParallel(model, optimizer)"
            )
        self._optimizer, self._rank = optimizer, rank
        self._names = {one: name for name, one in module.named_parameters()}
        self._frozen = [one for one in self._names if not one.requires_grad]
        self._owned: list[torch.Tensor] = []
        self._take_owned()
        owned = set(self._owned)
        missing = [
            name for one, name in self._names.items() if one.requires_grad and one not in owned
        ]
        if missing:
            warn(
                f"rank {rank}: the optimizer leaves out {_shown(missing)}, which would stay as "
                "they are; build it from model.parameters(), or freeze them with requires_grad_",
                stacklevel=3,
            )

    def check(self) -> None:
        """Take up parameters that the optimizer was given since; refuse what would not be averaged.

        Raises:
            ValueError: If it was given others than the model's, or if a parameter requires a
                gradient that did not when the model was wrapped.
        """
        now = list(chain.from_iterable(group["params"] for group in self._optimizer.param_groups))
        if len(now) != len(self._owned) or any(map(is_not, now, self._owned)):
            self._take_owned()
        late = [self._names[one] for one in self._frozen if one.requires_grad]
        if late:
            raise ValueError(
                f"rank {self._rank}: {_shown(late)} require(s) a gradient now, but did not when "
                "the model was wrapped, so no rank averages it; close() and wrap the model anew"
            )

    def _take_owned(self) -> None:
        self._owned = []
        for number, group in enumerate(self._optimizer.param_groups):
            foreign = [one for one in group["params"] if one not in self._names]
            if foreign:
                raise ValueError(
                    f"rank {self._rank}: the optimizer must update parameters of the model only, "
                    f"but {len(foreign)} of {len(group['params'])} in its group {number} are not "
                    f"(one has shape {tuple(foreign[0].shape)}), so no rank averages their "
                    "gradients; build it from the parameters of the model that you wrap"
                )
            self._owned += group["params"]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more
