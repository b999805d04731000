"""What a run saves: its settings, its place in the data, the model and the optimizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from data import Feed
from torch import nn

import paceline
from paceline.errors import StateMismatchError

NUM_KEPT = 2


class Settings:
    """What must not change when a run goes on."""

    def __init__(self, fixed: Mapping[str, Any]) -> None:
        self._fixed = dict(fixed)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings."""
        return self._fixed

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Check that this run has the settings that were saved.

        Raises:
            StateMismatchError: If it has not; names those that differ.
        """
        changed = [name for name, value in self._fixed.items() if saved.get(name) != value]
        if changed:
            listed = ", ".join(
                f"{name} was {saved.get(name)!r} and is {self._fixed[name]!r}" for name in changed
            )
            raise StateMismatchError(
                f"the checkpoint is of another configuration: {listed}; pass the same, or another "
                "--out"
            )


def checkpoint_of(
    folder: Path,
    fixed: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
) -> paceline.Checkpoint:
    """Return what saves and resumes the run; settings are checked before anything is loaded.

    Args:
        folder: Gets one folder per checkpoint.
        fixed: Settings that must not change when a run goes on.
        model: Without a wrapper.
        optimizer: Its next step waits until the tensors are copied.
        feed: The data.
    """
    return paceline.Checkpoint(
        folder,
        model=model,
        optimizer=optimizer,
        data=feed,
        keep=NUM_KEPT,
        settings=Settings(fixed),
    )
