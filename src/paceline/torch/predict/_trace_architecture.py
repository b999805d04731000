"""What kind of model a trace shows: family, depth, width, tokens, heads."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from paceline.predict.work import Family, OperatorWork

ACTIVATIONS = frozenset({
    "relu", "relu_", "gelu", "silu", "silu_", "elu", "elu_", "leaky_relu", "leaky_relu_",
    "hardtanh", "hardtanh_", "hardswish", "hardswish_", "mish", "prelu", "softplus",
})  # fmt: skip
COUNTED = ACTIVATIONS | {"tanh", "sigmoid", "_softmax", "_safe_softmax"}
NORM_SUFFIXES = ("batch_norm", "batch_norm_legit", "layer_norm", "group_norm", "rms_norm")
POOLS = ("max_pool2d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d_with_indices")
CONV_SHARE_OF_A_CNN = 0.5


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
    """Classify a model by what ran in its forward pass.

    Args:
        model: The traced model.
        calls: Operators of the forward pass.
        batch_size: Examples in it.
    """
    forward = list(calls)
    family = _family(model, forward)
    width, num_tokens = 0, 0
    if family in ("MLP", "Transformer", "RNN"):
        width, num_tokens = _width_and_tokens(forward, batch_size)
    heads = _attentions(forward, batch_size)
    return Architecture(
        family=family,
        depth=_depth(model, family, heads),
        width=width,
        num_tokens=num_tokens,
        num_heads=heads[0] if heads else 0,
    )


def is_norm(operator: str) -> bool:
    """Return whether the operator normalises activations."""
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
    """Sum the FLOPs of each class of operator that has any."""
    total: dict[str, float] = {}
    for call in calls:
        if call.flops:
            total[call.operator_class] = total.get(call.operator_class, 0.0) + call.flops
    return total


def _family(model: nn.Module, calls: list[OperatorWork]) -> Family:
    flops = flops_by_class(calls)
    names = {call.operator for call in calls}
    if _attentions(calls):
        return "Transformer"
    if flops.get("recurrent") or any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return "RNN"
    total = sum(flops.values())
    conv = flops.get("conv", 0.0) + flops.get("depthwise", 0.0)
    if conv > CONV_SHARE_OF_A_CNN * total:
        return "CNN"
    return "MLP" if flops.get("matmul") and not _scatters(names) else "other"


def _attentions(calls: list[OperatorWork], batch_size: int = 1) -> list[int]:
    """Return the heads of each attention, fused or as two batched products and a softmax."""
    fused = [call.dims[1] for call in calls if call.operator_class == "attention"]
    batched = [c.dims[0] // batch_size for c in calls if c.operator in ("bmm", "baddbmm")]
    num_softmax = sum(call.operator in ("_softmax", "_safe_softmax") for call in calls)
    return fused + batched[: min(num_softmax, len(batched) // 2)]


def _scatters(names: set[str]) -> bool:
    """Return whether rows are summed by index, as message passing on graphs does."""
    return any(name.startswith(("index_add", "scatter")) for name in names)


def _width_and_tokens(calls: list[OperatorWork], batch_size: int) -> tuple[int, int]:
    """Return the input size of most linear layers, and positions per example."""
    linear = [c for c in calls if c.operator_class == "matmul" and c.dims[0] == 1]
    if not linear:
        recurrent = [c for c in calls if c.operator_class == "recurrent"]
        return (0, recurrent[0].dims[0]) if recurrent else (0, 0)
    work: Counter[int] = Counter()
    for call in linear:
        work[call.dims[2]] += 1
    width = work.most_common(1)[0][0]
    rows = Counter(call.dims[1] for call in linear if call.dims[2] == width)
    # Of equals the fewer: layers that mix positions see as many rows as there are channels.
    positions = max(rows, key=lambda count: (rows[count], -count))
    return width, max(1, positions // batch_size)


def _depth(model: nn.Module, family: Family, heads: list[int]) -> int:
    if family == "Transformer" and heads:
        return len(heads)
    if family in ("MLP", "Transformer"):
        blocks = _repeated_blocks(model)
        if blocks:
            return blocks
    weighted = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.Bilinear)
    return sum(isinstance(module, weighted) for module in model.modules())


def _repeated_blocks(model: nn.Module) -> int:
    """Return how often the most frequent compound child class occurs in one container."""
    most = 0
    for module in model.modules():
        classes = Counter(
            type(child)
            for child in module.children()
            if any(True for _ in child.children()) and any(True for _ in child.parameters())
        )
        most = max(most, *classes.values(), 0)
    return most if most > 1 else 0
