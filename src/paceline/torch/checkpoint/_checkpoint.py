"""Save and resume a whole run, on all its ranks."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.errors import CheckpointError
from paceline.torch.checkpoint._agree import about_to_save, check_alike, gather
from paceline.torch.checkpoint._async_checkpoint import AsyncCheckpoint
from paceline.torch.checkpoint._folder import Folder
from paceline.torch.checkpoint._random_state import random_state
from paceline.torch.checkpoint._restore import restore_run
from paceline.torch.checkpoint._resume import agreed_content
from paceline.torch.checkpoint._stop import StopRequest
from paceline.torch.comm import ScheduledDataParallel


@runtime_checkable
class Stateful(Protocol):
    """What can be saved beside the model: its state must be equal on all ranks."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from a state."""


class Checkpoint:
    """Saves and resumes a whole run: model, optimizer, place in the data, random states.

    All ranks make one and call its methods together. Rank 0 writes, while training goes on; all
    read, so `folder` must be one that all of them see. Training that was resumed is bit for bit
    the training that was not interrupted, on as many ranks; on another number of ranks each
    example of the epoch still comes once, and the sums are rounded in another order.

    Args:
        folder: Gets one folder per checkpoint, `step_00000042`.
        model: Bare, in DistributedDataParallel or in ScheduledDataParallel; what is saved is the
            bare model, so a run may change from one to another.
        optimizer: Of the model; sharded state is saved whole.
        data: A `paceline.DataLoader`, a sampler, or anything else with a state.
        keep: Checkpoints that are kept, at least 1.
        process_group: Ranks that train together; unset for the default group, if there is one.
        **stateful: More objects with `state_dict` and `load_state_dict`, such as a learning-rate
            scheduler. Their states must be equal on all ranks.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with TemporaryDirectory() as folder:
        ...     with Checkpoint(folder, model=model, optimizer=optimizer) as checkpoint:
        ...         for step in range(checkpoint.resume(), 20):
        ...             model(torch.ones(1, 2)).sum().backward()
        ...             optimizer.step()
        ...             if (step + 1) % 10 == 0:
        ...                 checkpoint.save(step + 1)
        ...     with Checkpoint(folder, model=model, optimizer=optimizer) as checkpoint:
        ...         checkpoint.resume()
        20
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        data: Stateful | None = None,
        keep: int = 3,
        process_group: dist.ProcessGroup | None = None,
        **stateful: Stateful,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder, self._keep = Folder(folder), keep
        self._model, self._optimizer = model, optimizer
        self._stateful = stateful if data is None else {**stateful, "data": data}
        _check_stateful(self._stateful)
        self._group = _shared_group(process_group)
        self._rank = 0 if self._group is None else dist.get_rank(self._group)
        self._writer: AsyncCheckpoint | None = None
        self._stop = StopRequest(self._group)

    def save(self, step: int) -> None:
        """Begin to save everything after `step` steps; all ranks must call it.

        Returns when the ranks have told each other their random states, which waits for the
        checkpoint before. Call it between two steps.

        Args:
            step: Steps that were made; names the checkpoint.

        Raises:
            ValueError: If a state holds what cannot be saved; names where.
            CheckpointError: On all ranks, if they disagree on what to save; or if the checkpoint
                before could not be written. Then this one is saved nevertheless.
        """
        states = {name: one.state_dict() for name, one in self._stateful.items()}
        training = self._training_state()
        failure = self._finished()
        told = gather(
            {
                **about_to_save(step, states, training),
                "random": random_state(),
                "failure": failure and str(failure),
            },
            self._group,
        )
        check_alike(told)
        if self._rank == 0:
            random_states = [one["random"] for one in told]
            state = {"step": step, "stateful": states, "random": random_states, **training}
            self._writer = self._writer or AsyncCheckpoint(
                self._folder.path, self._optimizer, keep=self._keep
            )
            self._writer.save(step, state)
            if self._optimizer is None:  # Nothing else would wait before the tensors change.
                self._writer.wait_snapshot()
        _raise_first(told)

    def resume(self, *, strict: bool = False) -> int:
        """Load the newest whole checkpoint; all ranks must call it, before the first step.

        Rank 0 chooses, and all ranks read the same one; nothing is changed before each of them
        has found every checksum to be right. What is damaged is told in one warning.

        Args:
            strict: Whether to raise if the newest is damaged, and not go back to an older one.

        Returns:
            Its step; 0 if there is no checkpoint, and nothing was changed.

        Raises:
            CheckpointError: On all ranks, if there are checkpoints and none can be used.
            StateMismatchError: If it is of another model, or an object refuses its state.
        """
        self.flush()
        content = agreed_content(self._folder, self._group, self._rank, strict=strict)
        if content is None:
            return 0
        bare = bare_model(self._model)
        restore_run(content, bare, self._optimizer, self._stateful, self._rank)
        step: int = content.state["step"]
        return step

    def flush(self) -> None:
        """Wait until the checkpoint is written; all ranks must call it.

        Raises:
            CheckpointError: On all ranks, if it could not be, unless that was told already.
        """
        failure = self._finished()
        _raise_first(gather({"failure": failure and str(failure)}, self._group))

    def latest(self) -> Path | None:
        """Return the folder of the newest checkpoint, if there is one."""
        return self._folder.latest()

    def on_signal(self, *signals: int) -> AbstractContextManager[None]:
        """Inside, take these signals as a wish to stop; see `should_stop`.

        Main thread only; the handlers that were there come back at the end.
        """
        return self._stop.on_signal(*signals)

    def should_stop(self) -> bool:
        """Tell whether any rank got a signal; all ranks must ask after each step.

        All get the same answer. With several ranks that is one all-reduce of one number which is
        not waited for, so the answer comes one step later.
        """
        return self._stop.is_due()

    def close(self) -> None:
        """Finish what is being written. No collective: other ranks may already be gone.

        Raises:
            CheckpointError: On rank 0, if it could not be written, unless that was told already.
        """
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, traceback)

    def _finished(self) -> CheckpointError | None:
        return None if self._writer is None else self._writer.finish()

    def _training_state(self) -> dict[str, Any]:
        """Return the state of model and optimizer, on rank 0; others help to gather it."""
        found: dict[str, Any] = {}
        if isinstance(self._model, ScheduledDataParallel):
            self._model.flush()
            if self._optimizer is not None:
                found["optimizer"] = self._model.optimizer_state_dict()
        elif self._optimizer is not None and self._rank == 0:
            found["optimizer"] = self._optimizer.state_dict()
        if self._rank == 0:
            found["model"] = bare_model(self._model).state_dict()
        return found


def bare_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model inside data-parallel wrappers, with all updates done."""
    while isinstance(model, DistributedDataParallel | ScheduledDataParallel):
        model = model.module
    return model


def _raise_first(told: list[dict[str, Any]]) -> None:
    """Raise on every rank what rank 0, which writes, found."""
    if told[0]["failure"] is not None:
        raise CheckpointError(told[0]["failure"])


def _shared_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the group to talk in; None if there is nobody else."""
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    return None if group is None or dist.get_world_size(group) == 1 else group


def _check_stateful(stateful: Mapping[str, Any]) -> None:
    for name, one in stateful.items():
        if not isinstance(one, Stateful):
            raise ValueError(
                f"{name} must have state_dict and load_state_dict, got {type(one).__name__}"
            )
