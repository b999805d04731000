"""What a micro-batch costs however small it is: the host dispatches its operations one by one."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from paceline.torch.model import is_compiled

NUM_CALLS, NUM_ROUNDS = 100, 5


class OpCount(TorchDispatchMode):
    """Counts the operations of one forward and backward pass, and their FLOPs.

    Attributes:
        num_ops: Operations dispatched so far.
        num_flops: Of those that PyTorch has a formula for: products of matrices, convolutions.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self._formulas = flop_registry
        self.num_ops = self.num_flops = 0
        self._is_open = False

    def open(self) -> None:
        """Count from here on."""
        self._is_open = True
        self.__enter__()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Count no further; nothing happens if it is closed."""
        # A script may have left a mode open inside: never leave one that is not ours.
        if self._is_open and _get_current_dispatch_mode_stack()[-1:] == [self]:
            self._is_open = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation as it is, and count it."""
        keywords = kwargs or {}
        out = func(*args, **keywords)
        self.num_ops += 1
        formula: Callable[..., int] | None = self._formulas.get(func.overloadpacket)
        if formula is not None:
            self.num_flops += formula(*args, **keywords, out_val=out)
        return out


def can_count(model: torch.nn.Module) -> bool:
    """Return whether counting leaves `model` alone: not if it is compiled, or others count."""
    return not (is_compiled(model) or _get_current_dispatch_mode_stack())


def tiny_op_s(device: torch.device) -> float:
    """Measure what it takes the host to dispatch an operation on one number; about 1 ms."""
    number = torch.zeros(1, device=device)
    rounds = []
    with torch.no_grad():
        for _ in range(NUM_ROUNDS):
            begin_s = time.perf_counter()
            for _ in range(NUM_CALLS):
                number.add(1.0)
            rounds.append((time.perf_counter() - begin_s) / NUM_CALLS)
    return min(rounds)
