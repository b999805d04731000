"""What fixes a traced or measured training step: model, inputs, optimizer, precision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_map

from paceline.predict.work import Workload
from paceline.torch.model import call_model
from paceline.torch.predict._recompute import recompute_blocks
from paceline.torch.predict._step_loss import default_loss

Inputs = Any
ExampleInput = torch.Tensor | tuple[Any, ...] | dict[str, Any] | Callable[[int], Inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSetup:
    """What fixes a training step besides model and inputs."""

    batch_size: int  # examples per step
    precision_bits: int = 32  # 32, or 16 for autocast to bfloat16
    optimizer: str = "SGD"  # class name in `torch.optim`
    # From the model's output to a scalar; unset for `default_loss`.
    loss: Callable[[Any], torch.Tensor] | None = None
    # Whose attention and dropout a trace counts: fused as on a GPU, or those of this CPU.
    kernels: Literal["gpu", "cpu"] = "cpu"
    num_accumulated: int = 1  # batches whose gradients are summed before an update
    recomputed: bool = False  # repeated blocks run again in the backward pass
    param_bits: int = 32  # of parameters themselves; 16 for bfloat16 throughout

    def prepared(self, model: nn.Module) -> nn.Module:
        """Return the model as this step trains it; changes it in place."""
        if self.recomputed:
            recompute_blocks(model)
        if self.param_bits == 16:
            _to_16_bits(model)
        return model.train()

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer with the settings that the tables use: SGD has momentum."""
        by_name = {name.lower(): name for name in torch.optim.__all__}
        kind = getattr(torch.optim, by_name.get(self.optimizer.lower(), ""), None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
            raise ValueError(
                f"optimizer must be a class of torch.optim such as SGD or AdamW, got "
                f"{self.optimizer!r}"
            )
        settings = {"lr": 1e-3, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 1e-3}
        make: Callable[..., torch.optim.Optimizer] = kind
        return make([p for p in model.parameters() if p.requires_grad], **settings)

    def loss_of(self, model: nn.Module, inputs: Inputs) -> torch.Tensor:
        """Run the forward pass in this precision."""
        kind = next((p.device.type for p in model.parameters()), "cpu")
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        low = torch.autocast(kind, dtype, enabled=self.precision_bits == 16)
        if self.param_bits == 16:
            inputs = tree_map(_in_16_bits, inputs)
        with low:
            output = call_model(model, inputs)
            return self.loss(output) if self.loss else default_loss(output, inputs)

    def train(self, model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer) -> None:
        """Run one training step; gradients are freed before it."""
        optimizer.zero_grad()
        for _ in range(self.num_accumulated):
            self.loss_of(model, inputs).backward()
        optimizer.step()


def check_setup(setup: StepSetup) -> None:
    """Raise a `ValueError` for a batch size, precision or optimizer that cannot be."""
    Workload(
        family="other",
        batch_size=setup.batch_size,
        precision_bits=setup.precision_bits,
        num_params=0,
        forward_flops_per_example=0.0,
        param_bits=setup.param_bits,
    )
    if setup.num_accumulated < 1:
        raise ValueError(f"accumulated batches must be at least 1, got {setup.num_accumulated}")
    setup.make_optimizer(nn.Linear(1, 1, device="meta"))


def inputs_for(
    example_input: ExampleInput | None, input_shape: tuple[int, ...] | None, batch_size: int
) -> Inputs:
    """Return one batch of random or zero inputs on the default device."""
    if (example_input is None) == (input_shape is None):
        raise ValueError("pass either example_input or input_shape, so that a batch can be made")
    if input_shape is not None:
        if not all(size > 0 for size in input_shape):
            raise ValueError(f"input_shape must be positive, got {input_shape}")
        return torch.randn(batch_size, *input_shape)
    if callable(example_input) and not isinstance(example_input, torch.Tensor):
        return example_input(batch_size)
    return tree_map(partial(_resized, batch_size=batch_size), example_input)


def readings(example_input: ExampleInput | None) -> list[tuple[str, ExampleInput | None]]:
    """Return what an example input may stand for, the likelier one first, with its name."""
    if example_input is None or not isinstance(example_input, (torch.Tensor, tuple, dict)):
        return [("", example_input)]
    one = tree_map(_one_more_dim, example_input)
    return [("batch", example_input), ("one example", one)]


def _one_more_dim(value: Any) -> Any:
    return value[None] if isinstance(value, torch.Tensor) else value


def _resized(value: Any, batch_size: int) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    shape = (batch_size, *value.shape[1:]) if value.dim() else ()
    # Zeros are valid rows of every embedding.
    make = torch.randn if value.is_floating_point() and shape else torch.zeros
    return make(shape, dtype=value.dtype)


def _to_16_bits(model: nn.Module) -> None:
    """Do what `model.bfloat16()` does, which fake parameters refuse."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False):
            if id(own) not in made:
                low = own.detach().bfloat16()
                made[id(own)] = nn.Parameter(low, requires_grad=own.requires_grad)
            module.register_parameter(name, made[id(own)])
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = _in_16_bits(buffer)


def _in_16_bits(value: Any) -> Any:
    is_real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if is_real else value


def build(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None = None,
    input_shape: tuple[int, ...] | None = None,
) -> tuple[nn.Module, ExampleInput | None]:
    """Return the module, and its example input where the function gives one."""
    if isinstance(model, nn.Module):
        return model, example_input
    made = _called(model)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        own = None if input_shape is not None else made[1]
        return made[0], example_input if example_input is not None else own
    if not isinstance(made, nn.Module):
        raise ValueError(
            f"the function must return a torch.nn.Module, or a pair of it and an example input; "
            f"it returned {type(made).__name__}"
        )
    return made, example_input


def _called(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        name = getattr(function, "__name__", "the function")
        first = str(error).strip().split("\n", 1)[0]
        raise RuntimeError(
            f"{name}() raised {type(error).__name__}: {first}; it must return the model when it is "
            "called without arguments"
        ) from error
