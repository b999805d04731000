"""What kind of model a trace shows: family, depth, width, tokens, heads."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from paceline.predict.work import Family, OperatorWork
from paceline.torch.predict._recompute import repeated_kind

ACTIVATIONS = frozenset({
    "relu", "relu_", "gelu", "silu", "silu_", "elu", "elu_", "leaky_relu", "leaky_relu_",
    "hardtanh", "hardtanh_", "hardswish", "hardswish_", "mish", "prelu", "softplus",
})  # fmt: skip
COUNTED = ACTIVATIONS | {"tanh", "sigmoid", "_softmax", "_safe_softmax"}
NORM_SUFFIXES = ("batch_norm", "batch_norm_legit", "layer_norm", "group_norm", "rms_norm")
POOLS = ("max_pool2d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d_with_indices")
CONV_SHARE_OF_A_CNN = 0.5
# Or so many convolutions over several pixels per linear layer: a patch embedding is only one.
SPATIAL_CONVS_PER_LINEAR = 0.25


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a trace says about the model as a whole; zeros where it has no meaning."""

    family: Family
    depth: int
    width: int
    num_tokens: int
    num_heads: int


def architecture_of(
    model: nn.Module, calls: Iterable[OperatorWork], batch_size: int
) -> Architecture:
    """Classify a model by the operators of its forward pass on `batch_size` examples."""
    forward = list(calls)
    family = _family(model, forward)
    width, num_tokens = 0, 0
    if family in ("MLP", "Transformer", "RNN"):
        width, num_tokens = _width_and_tokens(forward, batch_size)
    heads = _attentions(forward, batch_size)
    depth = _depth(model, family, heads)
    return Architecture(family, depth, width, num_tokens, num_heads=heads[0] if heads else 0)


def is_norm(operator: str) -> bool:
    return operator.endswith(NORM_SUFFIXES)


def num_table_kernels(call: OperatorWork) -> int:
    """Return how many kernels of the tables' count a call is.

    They count weighted layers, norms, activation functions, and attention as two products and
    a softmax; sums of branches, pools and copies not at all.
    """
    if call.operator_class == "attention":
        return 3
    counts = call.operator_class in ("matmul", "conv", "depthwise", "recurrent")
    return int(counts or is_norm(call.operator) or call.operator in COUNTED)


def flops_by_class(calls: Iterable[OperatorWork]) -> dict[str, float]:
    total: dict[str, float] = {}
    for call in calls:
        if call.flops:
            total[call.operator_class] = total.get(call.operator_class, 0.0) + call.flops
    return total


def _family(model: nn.Module, calls: list[OperatorWork]) -> Family:
    flops = flops_by_class(calls)
    conv = flops.get("conv", 0.0) + flops.get("depthwise", 0.0)
    if conv > CONV_SHARE_OF_A_CNN * sum(flops.values()):
        return "CNN"
    if _attentions(calls):
        return "Transformer"
    if flops.get("recurrent") or any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return "RNN"
    if _is_convolutional(calls):
        return "CNN"
    # Message passing on graphs sums rows by index.
    scatters = any(call.operator.startswith(("index_add", "scatter")) for call in calls)
    return "MLP" if flops.get("matmul") and not scatters else "other"


def _is_convolutional(calls: list[OperatorWork]) -> bool:
    """Return whether convolutions mix positions throughout, as in ConvNeXt."""
    convs = [c for c in calls if c.operator_class in ("conv", "depthwise") and c.dims[4] > 1]
    num_linear = sum(c.operator_class == "matmul" for c in calls)
    return len(convs) > max(1.0, SPATIAL_CONVS_PER_LINEAR * num_linear)


def _attentions(calls: list[OperatorWork], batch_size: int = 1) -> list[int]:
    """Return the heads of each attention, fused or as two batched products and a softmax."""
    fused = [call.dims[1] for call in calls if call.operator_class == "attention"]
    batched = [c.dims[0] // batch_size for c in calls if c.operator in ("bmm", "baddbmm")]
    num_softmax = sum(call.operator in ("_softmax", "_safe_softmax") for call in calls)
    return fused + batched[: min(num_softmax, len(batched) // 2)]


def _width_and_tokens(calls: list[OperatorWork], batch_size: int) -> tuple[int, int]:
    """Return the input size of most linear layers, and positions per example."""
    linear = [c for c in calls if c.operator_class == "matmul" and c.dims[0] == 1]
    if not linear:
        recurrent = [c for c in calls if c.operator_class == "recurrent"]
        return (0, recurrent[0].dims[0]) if recurrent else (0, 0)
    width = Counter(call.dims[2] for call in linear).most_common(1)[0][0]
    rows = Counter(call.dims[1] for call in linear if call.dims[2] == width)
    # Of equals the fewer: layers that mix positions see as many rows as there are channels.
    positions = max(rows, key=lambda count: (rows[count], -count))
    return width, max(1, positions // batch_size)


def _depth(model: nn.Module, family: Family, heads: list[int]) -> int:
    if family == "Transformer" and heads:
        return len(heads)
    if family in ("MLP", "Transformer") and (blocks := repeated_kind(model)[1]):
        return blocks
    weighted = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.Bilinear)
    return sum(isinstance(module, weighted) for module in model.modules())
