"""One layer of a split model: its forward pass, and how its backward pass is run."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.torch.overlap.split._ops import OpArgs, ScaleOp, SplitOp
from paceline.torch.overlap.split._slots import Slot

# Hooks of these modules do not look at the gradient that they are called with.
OWN_HOOKS = "paceline.torch."

Pair = tuple[Slot | None, Slot | None]


class Mode(Enum):
    """What a layer does with its weight gradients."""

    PLAIN = 0
    """Leaves them to PyTorch."""
    INLINE = 1
    """Computes them by themselves, at once, so that they can be timed."""
    DEFER = 2
    """Hands them to the assist lane."""


class Backward(Protocol):
    """What a layer tells its model."""

    def begin(self) -> None:
        """Note that the backward pass has begun."""

    def mark(self, site: "Site") -> None:
        """Note that the input gradient is done, or the weight gradients are."""


class Slots(Protocol):
    """Where a layer hands its weight gradients."""

    def find(self, tensor: Tensor) -> Slot | None:
        """Return the slot of a parameter."""

    def defer(self, site: "Site", slots: Pair, args: OpArgs) -> None:
        """Have the weight gradients that have a slot computed on the assist lane."""


class Site:
    """A layer whose `forward` is replaced until `restore` is called."""

    def __init__(
        self, name: str, module: nn.Module, op: SplitOp, model: Backward, slots: Slots
    ) -> None:
        self.name, self.op, self.model, self.slots = name, op, model, slots
        self.task_name = f"{name} weight gradient"
        self.mode = Mode.PLAIN
        self._module = module
        self._parameters = module._parameters
        self._eps = module.eps if isinstance(module, nn.RMSNorm) else None
        self._own_forward = module.__dict__.get("forward")
        self._plain: Callable[..., Any] = module.forward
        module.forward = self._forward

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and, if there is one, bias."""
        found = (self._parameters["weight"], self._parameters.get("bias"))
        return [parameter for parameter in found if parameter is not None]

    def restore(self) -> None:
        """Give the module its own `forward` back."""
        if self._module.__dict__.get("forward") != self._forward:
            return  # It was replaced again since, by a function that calls ours.
        if self._own_forward is None:
            del self._module.forward
        else:
            self._module.forward = self._own_forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mode is Mode.PLAIN or kwargs or len(args) != 1 or not torch.is_grad_enabled():
            return self._plain(*args, **kwargs)
        x, weight = args[0], self._parameters.get("weight")
        if weight is None or not self._may_split(x, weight):
            return self._plain(x)
        if isinstance(self.op, ScaleOp):
            x = functional.rms_norm(x, tuple(weight.shape), None, self._eps)
        elif self.op.casts and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # torch leaves `apply` of a custom function untyped.
        return _Split.apply(self, self.mode, x, weight, self._parameters.get("bias"))  # type: ignore[no-untyped-call]

    def _may_split(self, x: Tensor, weight: Tensor) -> bool:
        op = self.op
        if type(x) is not Tensor or not weight.requires_grad or torch.compiler.is_compiling():
            return False
        if op.casts:
            # One example without a batch dimension takes other kernels.
            is_known = x.dim() >= weight.dim()
        else:
            # Indices are looked up in any precision.
            is_known = not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type))
        if not is_known or self.slots.find(weight) is None:
            return False
        return not torch._C._are_functorch_transforms_active()


class _Split(torch.autograd.Function):
    """The layer as one node of the graph, which may return no weight gradients."""

    @staticmethod
    def forward(
        ctx: Any, site: Site, mode: Mode, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.call = site, mode, weight, bias
        used, used_bias, op = weight, bias, site.op
        if op.casts and x.dtype is not weight.dtype:
            used = weight.to(x.dtype)
            used_bias = None if bias is None else bias.to(x.dtype)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                out, extras = op.run(x, used, used_bias)
        else:
            out, extras = op.run(x, used, used_bias)
        ctx.save_for_backward(x, used, *extras)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        site, mode, weight, bias = ctx.call
        x, used, *extras = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (None, None, *_differentiable(ctx, grads[0], x, weight, bias))
        site.model.begin()
        needs, args = ctx.needs_input_grad, OpArgs(grads[0], x, used, tuple(extras))
        is_inline = mode is Mode.INLINE
        slots = None if is_inline else _slots(site, ctx.next_functions, weight, bias)
        if slots is not None:
            # First, since it needs nothing of the input gradient: both may run at once.
            site.slots.defer(site, slots, args)
        by_input = site.op.input_grad(args) if needs[2] else None
        if slots is not None:
            return None, None, by_input, None, None
        if is_inline:
            site.model.mark(site)
        by_weight, by_bias = site.op.weight_grads(args, needs[3:])
        found = _like(by_weight, weight), _like(by_bias, bias)
        if is_inline:
            site.model.mark(site)
        return None, None, by_input, *found


def _slots(
    site: Site, edges: Sequence[tuple[Any, int]], weight: Tensor, bias: Tensor | None
) -> Pair | None:
    """Return where the weight gradients go, or None where autograd is to return them.

    With `inputs=...`, gradients of other parameters are not wanted; and `autograd.grad` wants
    them returned, which the engine says by an error.
    """
    # The edges are those of the input, the weight and, if there is one, the bias.
    will_run = torch._C._will_engine_execute_node
    try:
        by_weight = site.slots.find(weight) if will_run(edges[1][0]) else None
        if bias is None or edges[2][0] is None:
            return by_weight, None
        return by_weight, site.slots.find(bias) if will_run(edges[2][0]) else None
    except RuntimeError:
        return None


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    if gradient is None or parameter is None:
        return gradient
    return gradient.to(parameter.dtype)


def _differentiable(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> list[Tensor | None]:
    """Run the layer again with autograd, so that its gradients have gradients."""
    site, wanted = ctx.call[0], ctx.needs_input_grad[2:]
    # Aliases, so that a weight which `x` was made with counts as used here only.
    own_x, own_weight = x.view_as(x), weight.view_as(weight)
    own_bias = None if bias is None else bias.view_as(bias)
    dtype = x.dtype if site.op.casts else weight.dtype
    used_bias = None if own_bias is None else own_bias.to(dtype)
    out, _ = site.op.run(own_x, own_weight.to(dtype), used_bias)
    rows = zip((own_x, own_weight, own_bias), wanted, strict=True)
    chosen = [value for value, is_wanted in rows if is_wanted and value is not None]
    found = iter(torch.autograd.grad(out, chosen, grad, create_graph=True))
    return [next(found) if is_wanted else None for is_wanted in wanted]


def has_user_hooks(parameter: nn.Parameter) -> bool:
    """Tell whether a hook wants to see the gradient, which a deferred one does not show."""
    hooks: Any = parameter._backward_hooks
    if hooks is None or len(hooks) == 1:  # Ours.
        return False
    names = (str(getattr(hook, "__module__", "")) for hook in hooks.values())
    return not all(name.startswith(OWN_HOOKS) for name in names)
