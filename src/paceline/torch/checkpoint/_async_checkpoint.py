"""Checkpoints that are written while training goes on, and are whole or not there."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from paceline.errors import CheckpointError
from paceline.timeline import Kind
from paceline.torch.checkpoint._fill import Copies, filled
from paceline.torch.checkpoint._folder import Folder
from paceline.torch.checkpoint._pending import PendingCheckpoint
from paceline.torch.checkpoint._tree import encode
from paceline.torch.overlap import Handle, Lanes

SNAPSHOT, WRITE = "snapshot", "write checkpoint"


class AsyncCheckpoint:
    """Writes checkpoints of a replicated model while training goes on.

    `save` returns at once. The copy lane copies the tensors to host memory that is used again by
    the next save (pinned for CUDA); the optimizer's next `step()` waits for that, because it is
    what changes them. Then the host lane, which yields to other threads, writes the copy and its
    checksums into a folder of its own, and renames that when all is on disk. So a process that
    dies leaves the previous checkpoint whole.

    Nothing is pickled: a checkpoint is `tensors.safetensors` and `index.json`.

    One rank saves, in data-parallel training rank 0, and nothing else may write to the folder.
    `paceline.Checkpoint` does that, and restores a whole run.

    Args:
        folder: Gets one folder per checkpoint, `step_00000042`.
        optimizer: Its `step()` waits for the snapshot. What it does not update, such as the
            buffers of batch norms, is copied before `save` returns. Without one, whatever
            changes the tensors must come after `wait_snapshot()`.
        lanes: With lanes `copy` and `host`; unset for lanes of its own.
        keep: Checkpoints that are kept, at least 1.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> model = torch.nn.Linear(2, 1)
        >>> with TemporaryDirectory() as folder, AsyncCheckpoint(folder) as checkpoint:
        ...     handle = checkpoint.save(3, {"model": model.state_dict()})
        ...     checkpoint.flush()
        ...     checkpoint.latest().name
        'step_00000003'
    """

    def __init__(
        self,
        folder: str | Path,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lanes: Lanes | None = None,
        keep: int = 2,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder, self._keep = Folder(folder), keep
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._folder.tidy()
        self._lanes, self._owns_lanes = lanes, lanes is None
        self._buffers: list[torch.Tensor] = []
        self._snapshot: Handle | None = None
        self._pending: PendingCheckpoint | None = None
        self._optimizer, self._hook = optimizer, None
        if optimizer is not None:
            self._hook = optimizer.register_step_pre_hook(lambda *_: self.wait_snapshot())

    def save(self, step: int, state: Mapping[str, Any]) -> PendingCheckpoint:
        """Begin to save `state`, once the checkpoint before is written.

        Args:
            step: Names the checkpoint.
            state: State dicts of the model, the optimizer, the sampler: numbers, text, None and
                tensors in lists, tuples and dictionaries.

        Returns:
            A handle whose `wait()` returns the path of the written checkpoint.

        Raises:
            ValueError: If `state` holds anything else; names where. Nothing is saved.
            CheckpointError: If the checkpoint before could not be written, unless that was told
                already. This one is saved nevertheless.
        """
        tree, tensors = encode(dict(state))
        failure = self.finish()
        self._fit_buffers(list(tensors.values()))
        self._pending = self._submit(step, tree, tensors)
        if failure is not None:
            raise failure
        return self._pending

    def _submit(self, step: int, tree: Any, tensors: dict[str, torch.Tensor]) -> PendingCheckpoint:
        lanes = self._lanes = self._lanes or Lanes(device=_device_of(tensors))
        pending = PendingCheckpoint(step)
        pairs = list(zip(tensors.values(), self._buffers, strict=True))
        now, later = _split(pairs, self._optimizer)
        pending.run(_copy, now)
        self._snapshot = lanes.submit(
            pending.run, _copy_async, later, lane="copy", kind=Kind.COPY, name=SNAPSHOT
        )
        copied = dict(zip(tensors, self._buffers, strict=True))
        pending.end_with(
            lanes.submit(
                pending.run,
                partial(self._folder.write, step, tree, copied, keep=self._keep),
                lane="host",
                kind=Kind.COPY,
                name=WRITE,
                after=[self._snapshot],
            )
        )
        return pending

    def wait_snapshot(self) -> None:
        """Wait until the tensors may change."""
        if self._snapshot is not None and self._lanes is not None:
            with self._lanes.span("wait for snapshot", Kind.DATA):
                self._snapshot.wait()
            self._snapshot = None

    def flush(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
            CheckpointError: If it could not be, unless its handle told so already.
        """
        failure = self.finish()
        if failure is not None:
            raise failure

    def finish(self) -> CheckpointError | None:
        """Wait as `flush`, but return the error."""
        self.wait_snapshot()
        pending, self._pending = self._pending, None
        if pending is not None and not pending.is_told:
            try:
                pending.wait()
            except CheckpointError as error:
                return error
        return None

    def latest(self) -> Path | None:
        """Return the newest checkpoint, if there is one."""
        return self._folder.latest()

    def load(self, state: dict[str, Any], path: Path | None = None) -> None:
        """Read a checkpoint, the latest unless `path` is given, into the tensors of `state`.

        Values that are no tensors are replaced in `state`; what `state` does not name is left
        out. Nothing is changed before all checksums were found to be right.

        Raises:
            FileNotFoundError: If there is none.
            CheckpointError: If it is not whole; says which older one is.
            StateMismatchError: If `state` names what was not saved, or in another shape or type.
        """
        path = path or self.latest()
        if path is None:
            raise FileNotFoundError(f"{self._folder.path} holds no checkpoint; save one first")
        saved = self._folder.read(Path(path)).state
        copies: Copies = []
        found = filled(state, saved, copies)
        _copy(copies)
        state.update(found)

    def close(self) -> None:
        """Finish the checkpoint that is being written.

        Raises:
            CheckpointError: As `flush`.
        """
        if self._hook is not None:
            self._hook.remove()
        failure = self.finish()
        if self._owns_lanes and self._lanes is not None:
            self._lanes.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            # The error that is under way is the one to be seen.
            error.add_note(str(failure))

    def _fit_buffers(self, tensors: list[torch.Tensor]) -> None:
        fits = [(b.shape, b.dtype) for b in self._buffers] == [(t.shape, t.dtype) for t in tensors]
        if not fits:
            self._buffers = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors
            ]


def _split(pairs: Copies, optimizer: torch.optim.Optimizer | None) -> tuple[Copies, Copies]:
    """Return what must be copied now, and what may be until the optimizer's next step."""
    if optimizer is None:
        return [], pairs
    states = [one for state in optimizer.state.values() for one in state.values()]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    updated = {_memory(one) for one in [*parameters, *states] if isinstance(one, torch.Tensor)}
    now = [pair for pair in pairs if _memory(pair[0]) not in updated]
    return now, [pair for pair in pairs if _memory(pair[0]) in updated]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copy(pairs: Copies) -> None:
    for source, target in pairs:
        target.copy_(source)


def _copy_async(pairs: Copies) -> None:
    for source, target in pairs:
        target.copy_(source, non_blocking=True)


def _device_of(tensors: Mapping[str, torch.Tensor]) -> torch.device:
    """Return the first CUDA device that a tensor lies on, else the CPU."""
    found = (tensor.device for tensor in tensors.values() if tensor.is_cuda)
    return next(found, torch.device("cpu"))
