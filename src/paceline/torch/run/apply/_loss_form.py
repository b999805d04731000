"""What a script's loss is: which mean, over how many terms, and of which examples.

Examples may change ranks only if each one's part of the loss can be told apart and weighed. So the
graph that autograd made is read from the loss down to what the model returned. It must hold one
mean, and otherwise operations that treat each example by itself.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch

LOG_LIKELIHOOD = ("NllLossBackward0", "NllLoss2DBackward0")
# They take a mean if their reduction says so.
REDUCING = (
    *LOG_LIKELIHOOD,
    "MseLossBackward0",
    "SmoothL1LossBackward0",
    "HuberLossBackward0",
    "BinaryCrossEntropyBackward0",
    "BinaryCrossEntropyWithLogitsBackward0",
)
RESHAPING = (
    "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "SqueezeBackward0",
    "SqueezeBackward1", "UnsqueezeBackward0", "ToCopyBackward0", "CloneBackward0", "AliasBackward0",
)  # fmt: skip
SCALING = ("DivBackward0", "MulBackward0")
BY_ELEMENT = (
    "LogSoftmaxBackward0", "NegBackward0", "SubBackward0", "AddBackward0", "PowBackward0",
    "AbsBackward0", "ExpBackward0", "LogBackward0", "SigmoidBackward0", "LogSigmoidBackward0",
    "TanhBackward0", "SqrtBackward0", "ReluBackward0", "SoftplusBackward0", "TransposeBackward0",
    "PermuteBackward0", "SliceBackward0", "SelectBackward0",
)  # fmt: skip
MEAN, NO_REDUCTION = 1, 0
MAX_NODES = 64


class Unfit(ValueError):
    """Why the batches of a script must stay as they are."""


class LossForm(NamedTuple):
    """One loss, read.

    Attributes:
        signature: Operations from the mean on, and numbers that they scale by.
        node: Of autograd, that takes the mean.
        num_terms: Of that mean.
    """

    signature: tuple[str, ...]
    node: Any
    num_terms: float

    @property
    def has_targets(self) -> bool:
        """Whether the terms of each example can be counted."""
        return self.node.name() in LOG_LIKELIHOOD

    def terms(self, num_examples: int) -> torch.Tensor:
        """Return how much each target adds to `num_terms`, shape `(num_examples, targets each)`.

        Raises:
            Unfit: If the targets cannot be divided among the examples.
        """
        target = self.node._saved_target
        if not num_examples or target.numel() % num_examples:
            raise Unfit(
                f"the loss has {target.numel()} targets, which {num_examples} examples cannot share"
            )
        ignored = self.node._saved_ignore_index
        counts = target != (ignored if ignored < 2**63 else ignored - 2**64)
        weight = self.node._saved_weight
        if weight is not None:
            counts = torch.where(counts, weight[target * counts], 0.0)
        terms: torch.Tensor = counts.reshape(num_examples, -1).double()
        return terms


def read_loss(loss: torch.Tensor, outputs: Collection[Any]) -> LossForm:
    """Read the graph of `loss`.

    Args:
        loss: A scalar that was not yet differentiated.
        outputs: Nodes of autograd that the model's output came from.

    Raises:
        Unfit: If it is no mean of terms that each belong to one example, as far as can be told.
    """
    if loss.numel() != 1 or loss.grad_fn is None:
        raise Unfit("backward() is called on something other than one loss")
    node, signature = _mean_above(loss.grad_fn)
    for inner in _below(node, outputs):
        _check_by_example(inner)
        signature.append(_described(inner))
    return LossForm(tuple(signature), node, _num_terms(node))


def _mean_above(node: Any) -> tuple[Any, list[str]]:
    """Go from the loss to the node that takes the mean, over what only scales it."""
    signature = []
    for _ in range(MAX_NODES):
        signature.append(_described(node))
        if _takes_mean(node):
            return node, signature
        inputs = [one for one, _ in node.next_functions if one is not None]
        if node.name() not in (*SCALING, *RESHAPING) or len(inputs) != 1:
            break
        (node,) = inputs
    raise Unfit(f"the loss is no single mean that can be read ({node.name()})")


def _takes_mean(node: Any) -> bool:
    if node.name() == "MeanBackward0":
        return True
    return node.name() in REDUCING and node._saved_reduction == MEAN


def _num_terms(node: Any) -> float:
    if node.name() in LOG_LIKELIHOOD:
        return float(node._saved_total_weight)
    if node.name() == "MeanBackward0":
        return float(node._saved_self_sym_numel)
    return float(node._saved_self.numel())


def _below(node: Any, outputs: Collection[Any]) -> Iterator[Any]:
    """Yield what lies between the mean and the model's output."""
    left = [one for one, _ in node.next_functions if one is not None]
    seen: set[Any] = set()
    while left:
        one = left.pop()
        if one in outputs or one in seen:
            continue
        seen.add(one)
        yield one
        if len(seen) > MAX_NODES:
            raise Unfit("the loss is more than what is read of it")
        left += [inner for inner, _ in one.next_functions if inner is not None]


def _check_by_example(node: Any) -> None:
    name = node.name()
    mixes = name not in (*SCALING, *RESHAPING, *BY_ELEMENT, *REDUCING)
    if mixes or getattr(node, "_saved_reduction", NO_REDUCTION) != NO_REDUCTION:
        raise Unfit(f"the loss may mix examples, or does not come from the model alone ({name})")
    if getattr(node, "_saved_dim", None) == 0:
        raise Unfit(f"the loss takes apart or mixes the first axis, the examples ({name})")


def _described(node: Any) -> str:
    """Return the name, with the number that a node scales by: it may depend on the batch."""
    other = getattr(node, "_saved_other", None) if node.name() in SCALING else None
    name: str = node.name()
    if isinstance(other, torch.Tensor) and not other.dim():
        return f"{name} {float(other):.6g}"
    return name
