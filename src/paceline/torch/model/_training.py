"""Whether an optimizer trains a model."""

from typing import Any

import torch


def check_trains(optimizer: Any, model: Any) -> None:
    """Raise a `ValueError` if `optimizer` updates none of the parameters of `model`."""
    if isinstance(optimizer, torch.nn.Module) or isinstance(model, torch.optim.Optimizer):
        raise ValueError(
            f"the model comes first, then its optimizer, got a {type(model).__name__} and a "
            f"{type(optimizer).__name__}; swap them"
        )
    own = {id(parameter) for parameter in model.parameters()}
    updated = [one for group in optimizer.param_groups for one in group["params"]]
    if not any(id(one) in own for one in updated):
        raise ValueError(
            f"optimizer must update the parameters of model, but none of its {len(updated)} is "
            "one of the model's; pass the optimizer that trains this model"
        )
