"""Put what was read into what is there."""

from collections.abc import Mapping
from typing import Any

import torch

from paceline.errors import StateMismatchError

Copies = list[tuple[torch.Tensor, torch.Tensor]]


def filled(state: Mapping[str, Any], saved: Any, copies: Copies, path: str = "") -> dict[str, Any]:
    """Return `state` with the values that were saved; tensors stay, and are noted in `copies`.

    Args:
        state: Names what is wanted.
        saved: What was read.
        copies: Gets what is to be copied where.
        path: To `state`, for messages.

    Raises:
        StateMismatchError: If something that is wanted was not saved, or does not fit.
    """
    if not isinstance(saved, Mapping):
        raise StateMismatchError(f"{path} is a dictionary here, and was saved as {saved!r:.60}")
    missing = [key for key in state if key not in saved]
    if missing:
        raise StateMismatchError(f"the checkpoint does not hold {path}[{missing[0]!r}]")
    return {
        key: _one(value, saved[key], copies, f"{path}[{key!r}]") for key, value in state.items()
    }


def check_same_tensors(
    there: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor], whose: str
) -> None:
    """Compare names, shapes and types.

    Raises:
        StateMismatchError: Names the first that differs.
    """
    for name in [*there, *saved]:
        here, was = (_kind(one.get(name)) for one in (there, saved))
        if here != was:
            raise StateMismatchError(
                f"{whose} has {here} as {name!r}, and {was} was saved; build it as it was"
            )


def _one(here: Any, saved: Any, copies: Copies, path: str) -> Any:
    if isinstance(here, torch.Tensor):
        if _kind(here) != _kind(saved):
            raise StateMismatchError(f"{path} is {_kind(here)} here, and {_kind(saved)} was saved")
        copies.append((saved, here.detach()))
        return here
    if isinstance(here, Mapping) and here:
        return filled(here, saved, copies, path)
    if isinstance(saved, list | tuple) and type(here) is type(saved) and len(here) == len(saved):
        pairs = enumerate(zip(here, saved, strict=True))
        return type(saved)(_one(*pair, copies, f"{path}[{at}]") for at, pair in pairs)
    return saved


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
