"""Describe a training step without running it: fake tensors that own no memory."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import nn

from paceline.errors import TraceError
from paceline.predict.work import OperatorWork, Workload
from paceline.torch.model import tensors_in
from paceline.torch.predict._trace_architecture import (
    ACTIVATIONS,
    POOLS,
    architecture_of,
    flops_by_class,
    is_norm,
    num_table_kernels,
)
from paceline.torch.predict._trace_build import OneFakeMode, build_without_weights
from paceline.torch.predict._trace_recorder import Recorder
from paceline.torch.predict._trace_setup import (
    ExampleInput,
    Inputs,
    StepSetup,
    check_setup,
    inputs_for,
    readings,
)

# What the tables count of a transformer's activations, whatever its depth.
PROXY_WIDTHS = 5


def trace_workload(
    model: nn.Module | Callable[[], Any],
    example_input: ExampleInput | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    batch_size: int,
    precision: int = 32,
    optimizer: str = "SGD",
    dataset_size: int = 0,
    num_classes: int = 0,
    name: str | None = None,
    loss: Callable[[Any], torch.Tensor] | None = None,
    kernels: Literal["gpu", "cpu"] = "gpu",
    num_accumulated: int = 1,
    recomputed: bool = False,
    param_bits: int = 32,
) -> Workload:
    """Describe one training step of a model, without weights and without running it.

    Forward pass, backward pass and optimizer run on PyTorch's fake tensors, which live on the
    meta device and dispatch as the CPU would, so the operators are those of a real CPU step;
    a GPU fuses some of them differently. FLOPs follow `torch.utils.flop_counter`. Takes about
    a tenth of a millisecond per operator and no memory for tensors; `model` is left unchanged.
    A function that reads values of tensors is called for real, without filling the weights.

    Args:
        model: A module, or a function without arguments that returns one, or that returns a
            pair of a module and its `example_input`.
        example_input: A tensor, a tuple of arguments or a dict of keyword arguments whose first
            dimension is the batch, whatever its size; or a function from the batch size to
            these, for models that batch otherwise. Where the model takes no such batch, it is
            read as one example; `input_kind` says which it was.
        input_shape: Instead of it: the shape of one example of 32-bit floats.
        batch_size: Examples per step, at least 1.
        precision: 32, or 16 for mixed precision.
        optimizer: Class name in `torch.optim`, case ignored; SGD is taken with momentum.
        dataset_size: Training examples, if known.
        num_classes: Outputs of a classifier, if known.
        name: What to call it; unset for the class name.
        loss: From the model's output to a scalar. Unset for the model's own `loss` if it
            returns one, cross entropy where it reads tokens, and else the mean square.
        kernels: "gpu" counts attention with dropout as one fused kernel, as CUDA has it, and
            masks of dropouts as bytes; "cpu" for the kernels of this CPU.
        num_accumulated: Batches whose gradients are summed before an update.
        recomputed: Whether repeated blocks run again in the backward pass (activation
            checkpointing).
        param_bits: Of the parameters themselves, their gradients and the optimizer's state: 16
            for bfloat16 throughout.

    Raises:
        TraceError: If the model needs values and not only shapes, or fails on the inputs.
        ValueError: If a setting is out of range, neither or both inputs are given, or the
            function raises.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> work = trace_workload(model, input_shape=(8,), batch_size=32)
        >>> work.family, work.num_params, work.forward_flops_per_example
        ('MLP', 212, 384.0)
    """
    setup = StepSetup(
        batch_size=batch_size,
        precision_bits=16 if param_bits == 16 else precision,
        optimizer=optimizer,
        loss=loss,
        kernels=kernels,
        num_accumulated=num_accumulated,
        recomputed=recomputed,
        param_bits=param_bits,
    )
    check_setup(setup)
    mode = OneFakeMode(allow_non_fake_inputs=True)
    with warnings.catch_warnings():
        # PyTorch warns about fake storage where modules clone their layers.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)
        module, example_input = build_without_weights(model, example_input, input_shape, mode)
        with mode:
            module = setup.prepared(module)
        failures = []
        for kind, given in readings(example_input):
            try:
                work = _traced(module, given, input_shape, setup, mode)
            except TraceError as error:
                failures.append(error)
            else:
                return replace(
                    work,
                    name=name or work.name,
                    input_kind=kind,
                    dataset_size=dataset_size,
                    num_classes=num_classes,
                )
    raise failures[0]


def _traced(
    module: nn.Module,
    example_input: ExampleInput | None,
    input_shape: tuple[int, ...] | None,
    setup: StepSetup,
    mode: OneFakeMode,
) -> Workload:
    with mode:
        try:
            inputs = inputs_for(example_input, input_shape, setup.batch_size)
            recorder = Recorder(module, like_a_gpu=setup.kernels == "gpu")
            _run_recorded(
                module, inputs, setup, setup.make_optimizer(module), recorder, warm_up=True
            )
        except (RuntimeError, TypeError, NotImplementedError) as error:
            first = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise TraceError(
                f"the model cannot be traced ({first}); its step must follow from "
                "shapes alone. Measure real steps instead"
            ) from error
        return _workload(module, inputs, recorder, setup, name=type(module).__name__)


def record_step(
    model: nn.Module, inputs: Inputs, setup: StepSetup, *, timed: bool = False
) -> tuple[Recorder, Workload]:
    """Describe a step by really running it on the CPU, once to warm up and once recorded.

    For models that cannot be traced, and with `timed`, to time single operators. Weights change as
    in training.
    """
    check_setup(setup)
    optimizer = setup.make_optimizer(model)
    setup.train(model, inputs, optimizer)
    optimizer.zero_grad()
    recorder = Recorder(model, timed=timed)
    _run_recorded(model, inputs, setup, optimizer, recorder)
    return recorder, _workload(model, inputs, recorder, setup, name=type(model).__name__)


def _run_recorded(
    model: nn.Module,
    inputs: Inputs,
    setup: StepSetup,
    optimizer: torch.optim.Optimizer,
    recorder: Recorder,
    *,
    warm_up: bool = False,
) -> None:
    recorder.memory.add(inputs)
    if setup.num_accumulated > 1:
        setup.loss_of(model, inputs).backward()
        recorder.note_gradients()
    with recorder.watching():
        loss = setup.loss_of(model, inputs)
        recorder.begin("backward")
        if loss.requires_grad:
            loss.backward()
    del loss
    recorder.note_gradients()
    if warm_up:
        optimizer.step()
    recorder.memory.ignore(tensors_in(list(optimizer.state.values())))
    recorder.begin("optimizer")
    with recorder:
        optimizer.step()


def _workload(
    model: nn.Module, inputs: Inputs, recorder: Recorder, setup: StepSetup, **facts: Any
) -> Workload:
    forward = [call for call in recorder.calls if call.phase == "forward"]
    kind = architecture_of(model, forward, setup.batch_size)
    trained = [p for p in model.parameters() if p.requires_grad]
    stored_bytes = sum(
        x.numel() * (1 if x.is_floating_point() else x.element_size()) for x in tensors_in(inputs)
    )
    flops = sum(call.flops for call in forward) / setup.batch_size
    by_class = {key: value / setup.batch_size for key, value in flops_by_class(forward).items()}
    return Workload(
        **asdict(kind),
        batch_size=setup.batch_size,
        precision_bits=setup.precision_bits,
        optimizer=next(n for n in torch.optim.__all__ if n.lower() == setup.optimizer.lower()),
        num_params=sum(p.numel() for p in trained),
        num_param_tensors=len(trained),
        param_bits=setup.param_bits,
        param_shapes=_param_shapes(model),
        forward_flops_per_example=flops,
        flops_by_class=by_class,
        num_norm_layers=sum(is_norm(call.operator) for call in forward),
        num_activation_layers=sum(call.operator in ACTIVATIONS for call in forward),
        activation_bytes_per_example=_activation_bytes(kind, forward, setup),
        example_bytes=stored_bytes / setup.batch_size,
        num_kernels=sum(map(num_table_kernels, forward)),
        num_operators=sum(call.operator_class != "view" for call in forward),
        num_python_calls=recorder.num_python_calls,
        bytes_moved_per_example=sum(c.read_bytes + c.written_bytes for c in forward)
        / setup.batch_size,
        written_bytes_per_example=sum(c.written_bytes for c in forward) / setup.batch_size,
        saved_bytes_per_example=recorder.saved_bytes / setup.batch_size,
        moments=recorder.memory.moments(setup.batch_size),
        operators=recorder.operators(),
        layers=recorder.layers(),
        **_shares(by_class, forward, setup.batch_size, kind.num_heads),
        **facts,
    )


def _param_shapes(model: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return names and shapes of what is trained; one parameter with two names counts once."""
    named = model.named_parameters()
    return tuple((name, tuple(p.shape)) for name, p in named if p.requires_grad)


def _shares(
    by_class: dict[str, float], forward: list[OperatorWork], batch_size: int, num_heads: int
) -> dict[str, Any]:
    """Return shares of the FLOPs by kind, and what convolutions write."""
    total = sum(by_class.values()) or 1.0
    convs = [c for c in forward if c.operator_class in ("conv", "depthwise")]

    def share(calls: list[OperatorWork]) -> float:
        return sum(call.flops for call in calls) / batch_size / total

    batched = sum(c.flops for c in forward if num_heads and c.operator in ("bmm", "baddbmm"))
    batched /= batch_size
    plain = [c for c in convs if c.operator_class == "conv"]
    outputs = [c.dims[1] * c.dims[3] // batch_size for c in convs]
    return {
        "conv_1x1_fraction": share([c for c in plain if c.dims[4] == 1]),
        "conv_3x3_fraction": share([c for c in plain if c.dims[4] == 9]),
        "depthwise_fraction": by_class.get("depthwise", 0.0) / total,
        "grouped_fraction": share([c for c in convs if c.dims[0] > 1]),
        "matmul_fraction": (by_class.get("matmul", 0.0) - batched) / total,
        "attention_fraction": (by_class.get("attention", 0.0) + batched) / total,
        "sum_conv_outputs": sum(outputs),
        "max_conv_outputs": max(outputs, default=0),
    }


def _activation_bytes(kind: Any, forward: list[OperatorWork], setup: StepSetup) -> float:
    """Return the tables' proxy: outputs of modules, or a multiple of tokens x width."""
    item_bytes = setup.precision_bits // 8
    if kind.family in ("MLP", "Transformer"):
        per_width = kind.depth if kind.family == "MLP" else PROXY_WIDTHS
        return float(per_width * kind.num_tokens * kind.width * item_bytes)
    written = sum(
        call.written_bytes
        for call in forward
        if call.operator_class in ("conv", "depthwise", "matmul", "recurrent")
        or call.operator in ACTIVATIONS
        or is_norm(call.operator)
    )
    # A pool also writes the index of each maximum, in 8 bytes.
    pooled = sum(call.written_bytes / 3 for call in forward if call.operator in POOLS)
    return (written + pooled) / setup.batch_size
