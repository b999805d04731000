"""Checkpoints that are written while training goes on, and are whole or not there.

The first rank writes for all, because all hold the same. `paceline.torch.AsyncCheckpoint` copies
the tensors, has `torch.distributed.checkpoint` write the copy beside its place, and renames that
when all is on disk. The step, the settings and the place in the data travel along as JSON in a
tensor of bytes, so that they are read and checked before anything else is.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from parallel import World
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from paceline.errors import StateMismatchError
from paceline.torch import AsyncCheckpoint

VERSION = 1
MOMENTS = ("exp_avg", "exp_avg_sq")
# Room for the JSON grows in pages, so that the copies fit from save to save.
PAGE_BYTES = 4096


class Checkpoints:
    """The checkpoints of one run; `close` it in the end.

    Args:
        folder: Where they lie, one folder each.
        fixed: Settings that must not change when a run goes on.
        world: The ranks that hold the same.
        model: Without a wrapper.
        optimizer: An AdamW; its next step waits until the tensors are copied.
    """

    def __init__(
        self,
        folder: Path,
        fixed: Mapping[str, Any],
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._folder, self._fixed, self._world = folder, dict(fixed), world
        self._model, self._optimizer = model, optimizer
        self._writer: AsyncCheckpoint | None = None

    def newest(self) -> Path | None:
        """Return the newest that is whole, or None."""
        return max(self._folder.glob("step_*"), default=None)

    def save(self, step: int, data: Mapping[str, Any]) -> None:
        """Begin to write everything after `step` steps; all updates must be done.

        Args:
            step: Optimizer steps that were made.
            data: State of the feed.
        """
        if self._world.rank != 0:
            return
        if self._writer is None:
            self._writer = AsyncCheckpoint(self._folder, self._optimizer)
        about = {"version": VERSION, "fixed": self._fixed, "step": step, "data": data}
        tensors = tensors_of(self._model, self._optimizer)
        self._writer.save(step, {"about": _as_bytes(about), **tensors})

    def load(self, path: Path) -> tuple[int, Mapping[str, Any]]:
        """Read `path` into model and optimizer; return the steps made and the feed's state.

        Raises:
            StateMismatchError: If it was written with other settings; nothing is changed then.
        """
        about = _about(path)
        self._check(path, about)
        _load(tensors_of(self._model, self._optimizer), path)
        return about["step"], about["data"]

    def close(self) -> None:
        """Finish what is being written, before any rank goes on."""
        if self._writer is not None:
            self._writer.close()
        if self._world.num_ranks > 1:
            dist.barrier()

    def _check(self, path: Path, about: Mapping[str, Any]) -> None:
        if about.get("version") != VERSION:
            raise StateMismatchError(f"{path} is of version {about.get('version')}, not {VERSION}")
        saved = about["fixed"]
        changed = [name for name in self._fixed if saved.get(name) != self._fixed[name]]
        if changed:
            listed = ", ".join(
                f"{name} was {saved.get(name)!r} and is {self._fixed[name]!r}" for name in changed
            )
            raise StateMismatchError(
                f"{path} is of another configuration: {listed}; pass the same, or another --out"
            )


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return all parameters and moments by name, sharing memory; shared weights come once.

    Moments that are not there yet are made, as zeros.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter)
        found[f"model.{name}"] = parameter.detach()
        for key in ("step", *MOMENTS):
            found[f"optimizer.{name}.{key}"] = state[key]
    return found


def _as_bytes(about: Mapping[str, Any]) -> torch.Tensor:
    text = json.dumps(about).encode()
    padded = text.ljust(-(-len(text) // PAGE_BYTES) * PAGE_BYTES)
    return torch.frombuffer(bytearray(padded), dtype=torch.uint8)


def _about(path: Path) -> dict[str, Any]:
    stored: Any = FileSystemReader(path).read_metadata().state_dict_metadata["about"]
    about = torch.empty(stored.size, dtype=torch.uint8)
    _load({"about": about}, path)
    found: dict[str, Any] = json.loads(about.numpy().tobytes())
    return found


def _load(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Read tensors in place, each rank by itself, of which torch need not warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is (disabled|unavailable)")
        load(tensors, checkpoint_id=path, no_dist=True)
