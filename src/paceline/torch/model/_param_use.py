"""Find out which module uses which parameter, and which parameter is used first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Reading these needs no values, so it is no use of the parameter.
_METADATA = frozenset(
    getattr(torch.Tensor, name).__get__
    for name in (
        *("device", "dtype", "grad", "is_cuda", "is_leaf", "layout", "ndim", "requires_grad"),
        *("_backward_hooks", "_post_accumulate_grad_hooks"),
    )
) | {
    torch.Tensor.shape.__get__,  # type: ignore[attr-defined]  # a descriptor at run time
    torch.Tensor.dim,
    torch.Tensor.element_size,
    torch.Tensor.is_contiguous,
    torch.Tensor.numel,
    torch.Tensor.size,
    torch.Tensor.stride,
}


class ParamUse:
    """Which running module used each parameter, over all recorded forward passes.

    A parameter is used when it is an argument of a torch function. The user is the
    innermost module that runs then, whoever owns the parameter: the parent for
    `F.linear(x, self.embed.weight)`, the attention for its `out_proj`. Uses that torch
    functions do not see, as in an autograd function of one's own, a C++ extension or
    compiled code, are taken to be by the module that owns the parameter, if it is called.

    Attributes:
        order: Parameters in the order of their first use.
        users: Every module that used the parameter, the first one first.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._running: list[torch.nn.Module] = [module]
        self.users: dict[torch.Tensor, dict[torch.nn.Module, None]] = {}

    @property
    def order(self) -> list[torch.Tensor]:
        """The parameters that were seen."""
        return list(self.users)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note what the forward passes inside do; hooks are removed on leaving."""
        handles = []
        for module in self._module.modules():
            handles.append(module.register_forward_pre_hook(self._on_call))
            handles.append(module.register_forward_hook(self._on_return, always_call=True))
        try:
            with _Mode(self._note):
                yield
        finally:
            for handle in handles:
                handle.remove()
            del self._running[1:]

    def record_pass(self, then: Callable[[], None]) -> None:
        """Record the one pass that a forward pre-hook of the module has seen begin, then `then`."""
        recording = self.recording()
        recording.__enter__()

        def end(*_: Any) -> None:
            handle.remove()
            recording.__exit__(None, None, None)
            then()

        handle = self._module.register_forward_hook(end, always_call=True)

    def _on_call(self, module: torch.nn.Module, _args: Any) -> None:
        self._running.append(module)

    def _on_return(self, module: torch.nn.Module, _args: Any, _output: Any) -> None:
        self._running.pop()
        for parameter in module.parameters(recurse=False):
            if parameter not in self.users:
                self.users[parameter] = {module: None}

    def _note(self, parameter: torch.nn.Parameter) -> None:
        self.users.setdefault(parameter, {}).setdefault(self._running[-1])


class _Mode(TorchFunctionMode):
    """Calls `note` for each parameter among the arguments of a torch function."""

    def __init__(self, note: Callable[[torch.nn.Parameter], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _METADATA:
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, torch.nn.Parameter):
                    self._note(value)
        return func(*args, **(kwargs or {}))


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether part of it is: compiled code does not see hooks that come later."""
    return any(_is_part_compiled(part) for part in module.modules())


def _is_part_compiled(part: torch.nn.Module) -> bool:
    """Tell `torch.compile(part)`, `part.compile()` and methods that were compiled by themselves."""
    is_wrapped = type(part).__module__ == "torch._dynamo.eval_frame"
    if is_wrapped or part._compiled_call_impl is not None:
        return True
    kinds = [kind for kind in type(part).__mro__ if kind not in torch.nn.Module.__mro__]
    members = chain(vars(part).values(), *(vars(kind).values() for kind in kinds))
    return any(
        isinstance(one, FunctionType) and "_torchdynamo_orig_callable" in vars(one)
        for one in members
    )
