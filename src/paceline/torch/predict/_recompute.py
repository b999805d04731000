"""Activation checkpointing of the repeated blocks of a model."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """Let every block keep its input only, and run again in the backward pass [1].

    Changes `model`. A model without repeated blocks is left as it is.

    References:
        [1] T. Chen et al., "Training deep nets with sublinear memory cost", 2016, section 4.
    """
    for block in _outermost(model, repeated_kind(model)):
        # Other random numbers are drawn again: nothing here depends on values.
        again: Any = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=_function_mode_again,
        )
        block.forward = again


def repeated_kind(model: nn.Module) -> tuple[type[nn.Module] | None, int]:
    """Return the compound class that one container has the most of, and how many.

    `(None, 0)` if no class occurs twice in a container.
    """
    kind, most = None, 1
    for module in model.modules():
        found = Counter(type(child) for child in module.children() if _is_compound(child))
        for each, number in found.most_common(1):
            kind, most = (each, number) if number > most else (kind, most)
    return (kind, most) if kind else (None, 0)


def _function_mode_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return contexts of the first and the second run: PyTorch's `backward` switches modes off."""
    return nullcontext(), _get_current_function_mode() or nullcontext()


def _is_compound(module: nn.Module) -> bool:
    has_children = any(True for _ in module.children())
    return has_children and any(True for _ in module.parameters())


def _outermost(model: nn.Module, kind: tuple[type[nn.Module] | None, int]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if type(module) is kind[0] and module not in inside:
            blocks.append(module)
            inside.update(module.modules())
    return blocks
