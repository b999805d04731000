"""One training step of one model, described without a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from types import MappingProxyType
from typing import Literal, Self, get_args

Family = Literal["CNN", "MLP", "Transformer", "RNN", "other"]
FAMILIES: tuple[str, ...] = get_args(Family)
PRECISIONS = (16, 32)
STATE_VALUES_PER_PARAM = {"SGD": 1, "Adam": 2, "AdamW": 2, "Adafactor": 2, "RMSprop": 1}
"""Optimizer values per parameter by the tables' convention: a moment counts as one."""

Bound = Literal["compute", "memory", "launch", "loader", "link"]
Phase = Literal["forward", "backward", "optimizer"]
OPERATOR_CLASSES = (
    "matmul", "conv", "depthwise", "attention", "recurrent", "gather", "elementwise", "view",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWork:
    """All calls of one operator with one size in one training step.

    Attributes:
        operator: Its name in the trace, such as "addmm".
        operator_class: One of `OPERATOR_CLASSES`; views move nothing and only cost a call.
        phase: "forward", "backward" or "optimizer".
        flops: Floating-point operations of one call, 2 per multiply-add.
        read_bytes: Bytes of the inputs of one call.
        written_bytes: Bytes of the outputs of one call.
        num_calls: Calls in one step.
        dims: What the time depends on beside these: `(batch, m, k, n)` of a matrix product,
            `(groups, positions, k, channels)` of a convolution with all positions of all
            examples, `(batch, heads, queries, keys, width)` of attention, `(steps, batch,
            weights)` of a recurrent layer.
    """

    operator: str
    operator_class: str
    phase: Phase
    flops: float
    read_bytes: float
    written_bytes: float
    num_calls: int = 1
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What one layer, a module that owns parameters, does in one step of the whole batch.

    Attributes:
        name: Its name in `model.named_modules()`.
        forward_flops: Of the whole batch.
        moved_bytes: Read and written in the forward pass, of the whole batch.
        num_params: That it owns and trains, shared ones counted once.
        num_kernels: Operators of its forward pass.
    """

    name: str
    forward_flops: float
    moved_bytes: float
    num_params: int
    num_kernels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMoment:
    """What a step holds at one moment, besides trained parameters and the optimizer's state.

    Attributes:
        phase: "forward", "backward" or "optimizer".
        bytes_per_example: Inputs, activations and their gradients.
        other_bytes: Whatever the batch: gradients of parameters that are there already, their
            16-bit copies, buffers, parameters that are not trained, the optimizer's temporaries.
        gradient_bytes: What of these are gradients of parameters.
    """

    phase: Phase
    bytes_per_example: float
    other_bytes: int
    gradient_bytes: int = 0

    def bytes_at(self, batch_size: int) -> int:
        """Return what is held with a batch of this size."""
        return self.other_bytes + round(batch_size * self.bytes_per_example)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training step of one model, independent of the device that runs it.

    The first block has the meaning of the columns of the step-time tables, so that a row of a
    table and a traced model are the same kind of object. The last block is what only a trace
    knows; a row of a table leaves it empty.

    Attributes:
        name: What to call it.
        family: "CNN", "MLP", "Transformer", "RNN" or "other".
        batch_size: Examples per step and worker.
        precision_bits: 32, or 16 for automatic mixed precision.
        optimizer: By its class name in PyTorch: "SGD" (with momentum), "Adam", "AdamW", ...
        num_params: Trained parameters.
        depth: Weighted layers of a CNN or RNN, blocks of an MLP or Transformer.
        forward_flops_per_example: 2 per multiply-add. The transformer tables' column
            `flops_fwd_per_token` counts otherwise, see `docs/predict.md`.
        activation_bytes_per_example: CNN: outputs of all modules at this precision; MLP: depth
            times tokens times width; Transformer: five times tokens times width. A proxy;
            what the backward pass keeps is `saved_bytes_per_example`.
        num_norm_layers: Normalisation layers.
        num_activation_layers: Activation modules or functions.
        conv_1x1_fraction: Share of the forward FLOPs in convolutions of 1 x 1, and so on.
        conv_3x3_fraction: Of 3 x 3, depthwise ones left out.
        depthwise_fraction: Convolutions with a group per channel.
        grouped_fraction: Convolutions with more than one group, depthwise included.
        matmul_fraction: Linear layers and matrix products outside attention.
        attention_fraction: Scores and weighted sums of attention.
        sum_conv_outputs: Values that convolutions write per example.
        max_conv_outputs: Of the largest one.
        width: `d_model` or `embed_dim`; 0 where it has no meaning.
        num_tokens: Positions per example, sequence length or patches; 0 likewise.
        num_heads: Of attention; 0 likewise.
        example_bytes: Of one input example as it is stored: a byte per value of floating
            inputs, which are pixels as a rule, and what integers take.
        dataset_size: Training examples; 0 if not known.
        num_classes: Outputs of a classifier; 0 if not known.
        dataset: Name of the dataset, if it has one.
        num_kernels: As the tables count them: weighted layers, norms and activation functions
            of the forward pass, products of attention and its softmax among them.
        num_operators: All operators of the forward pass that do work; 0 if not traced.
        bytes_moved_per_example: Read and written by forward operators, cache ignored.
        written_bytes_per_example: Of these the written ones.
        saved_bytes_per_example: Kept from the forward pass for the backward pass.
        flops_by_class: Forward FLOPs per example by operator class.
        moments: Those at which the step holds the most, for one batch size or another; the
            last is the optimizer's, which updates one parameter after another as on a CPU.
        num_param_tensors: Parameters as the optimizer sees them.
        param_bits: Of the parameters themselves; 16 for bfloat16 throughout.
        param_shapes: Their names and shapes, which say how they are sharded.
        input_kind: What the example input was read as: "batch" or "one example"; "" for a shape.
        num_python_calls: Calls of PyTorch from Python in the forward pass.
        operators: Every operator of a step at `batch_size`, in all three phases.
        layers: In the order of their first call, at `batch_size`.

    Examples:
        >>> work = Workload(
        ...     family="MLP", batch_size=32, num_params=1000, forward_flops_per_example=2000.0
        ... )
        >>> work.train_flops_per_batch, work.with_batch_size(64).train_flops_per_batch
        (192000.0, 384000.0)
    """

    family: Family
    batch_size: int
    num_params: int
    forward_flops_per_example: float
    name: str = "model"
    precision_bits: int = 32
    optimizer: str = "SGD"
    depth: int = 0
    activation_bytes_per_example: float = 0.0
    num_norm_layers: int = 0
    num_activation_layers: int = 0
    conv_1x1_fraction: float = 0.0
    conv_3x3_fraction: float = 0.0
    depthwise_fraction: float = 0.0
    grouped_fraction: float = 0.0
    matmul_fraction: float = 0.0
    attention_fraction: float = 0.0
    sum_conv_outputs: int = 0
    max_conv_outputs: int = 0
    width: int = 0
    num_tokens: int = 0
    num_heads: int = 0
    example_bytes: float = 0.0
    dataset_size: int = 0
    num_classes: int = 0
    dataset: str = ""
    num_kernels: int = 0
    num_operators: int = 0
    bytes_moved_per_example: float = 0.0
    written_bytes_per_example: float = 0.0
    saved_bytes_per_example: float = 0.0
    moments: tuple[MemoryMoment, ...] = ()
    num_param_tensors: int = 0
    param_bits: int = 32
    param_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    num_python_calls: int = 0
    input_kind: str = ""
    flops_by_class: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    operators: tuple[OperatorWork, ...] = ()
    layers: tuple[LayerWork, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.precision_bits not in PRECISIONS:
            raise ValueError(
                f"precision must be 32, or 16 for mixed precision, got {self.precision_bits}"
            )
        if self.param_bits not in PRECISIONS:
            raise ValueError(f"param_bits must be 32, or 16 for bfloat16, got {self.param_bits}")
        if self.num_params < 0 or self.dataset_size < 0:
            raise ValueError(
                f"num_params ({self.num_params}) and dataset_size ({self.dataset_size}) must not "
                "be negative"
            )
        flops = self.forward_flops_per_example
        if not (isfinite(flops) and flops >= 0):
            raise ValueError(f"forward_flops_per_example must be finite and >= 0, got {flops}")

    @property
    def train_flops_per_example(self) -> float:
        """Forward and backward pass, counted as three forward passes."""
        return 3.0 * self.forward_flops_per_example

    @property
    def train_flops_per_batch(self) -> float:
        """Of one step of one worker."""
        return self.batch_size * self.train_flops_per_example

    @property
    def param_bytes(self) -> int:
        """Of all parameters; mixed precision keeps them in 32 bits."""
        return self.param_bits // 8 * self.num_params

    @property
    def optimizer_state_bytes(self) -> int:
        """By the tables' convention; `estimate_memory` counts what PyTorch really keeps."""
        return STATE_VALUES_PER_PARAM.get(self.optimizer, 2) * self.param_bytes

    @property
    def master_param_bytes(self) -> int:
        """By the tables' convention: a second copy under mixed precision."""
        return self.param_bytes if self.precision_bits < self.param_bits else 0

    @property
    def total_state_bytes(self) -> int:
        """Parameters, optimizer state and master copy, by the tables' convention."""
        return self.param_bytes + self.optimizer_state_bytes + self.master_param_bytes

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one worker alone over the dataset, the last one short."""
        return -(-self.dataset_size // self.batch_size)

    def with_batch_size(self, batch_size: int) -> Self:
        """Return the same model at another batch size.

        What a trace knows per step is dropped, because sizes of operators do not simply scale;
        trace again to have it.
        """
        if batch_size == self.batch_size:
            return self
        return replace(self, batch_size=batch_size, operators=(), layers=())
