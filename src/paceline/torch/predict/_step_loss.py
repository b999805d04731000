"""The loss of a step whose user has not said one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from paceline.torch.model import mean_square, tensors_in

TOKEN_LOGITS_DIM = 3


def default_loss(output: Any, inputs: Any) -> torch.Tensor:
    """Return the model's own loss, cross entropy where it reads tokens, or the mean square.

    Both are computed in 32 bits, as training does: for a large vocabulary the 32-bit logits and
    their gradient are most of what a step holds.

    Args:
        output: What the model returned; its own loss is an attribute or key `loss`.
        inputs: What it was called with. Integers are tokens: an output of shape `(batch,
            positions, classes)` is then taken for logits.
    """
    own = _part(output, "loss")
    if isinstance(own, torch.Tensor):
        return own
    logits = _part(output, "logits", otherwise=output)
    reads_tokens = any(not tensor.is_floating_point() for tensor in tensors_in(inputs))
    if reads_tokens and isinstance(logits, torch.Tensor) and logits.dim() == TOKEN_LOGITS_DIM:
        rows = logits.flatten(0, 1).float()
        return cross_entropy(rows, torch.zeros(rows.shape[0], dtype=torch.int64))
    real = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    return mean_square([tensor.float() for tensor in real] if real else output)


def _part(output: Any, name: str, otherwise: Any = None) -> Any:
    if isinstance(output, Mapping):
        return output.get(name, otherwise)
    return getattr(output, name, otherwise)
