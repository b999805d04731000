"""Checkpoints that are written while training goes on, and are complete or not there."""

import copy
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.utils._pytree import tree_flatten, tree_unflatten

from paceline.timeline import Kind
from paceline.torch.overlap._lanes import Lanes
from paceline.torch.overlap._task import Handle

SNAPSHOT, WRITE = "snapshot", "write checkpoint"
PREFIX, PARTIAL = "step_", ".partial_"
PIECE_BYTES = 1 << 20


class AsyncCheckpoint:
    """Writes checkpoints of a replicated model while training goes on.

    `save` returns at once. The copy lane copies all tensors to host memory that is reused by the
    next save (pinned for CUDA); the optimizer's next `step()`, which changes them, waits for
    that. Then the host lane, which yields to other threads, writes the copy through
    `torch.distributed.checkpoint` into a folder of its own, and renames that when all is on disk.
    So a process that dies leaves the previous checkpoint intact.

    One rank saves, in data-parallel training rank 0; for a sharded model use
    `torch.distributed.checkpoint.async_save`.

    Args:
        folder: Gets one folder per checkpoint, `step_00000042`.
        optimizer: Its `step()` waits for the snapshot. Without, whatever changes the tensors
            must come after `wait_snapshot()`.
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
        self._folder, self._keep = Path(folder), keep
        self._folder.mkdir(parents=True, exist_ok=True)
        for partial in self._folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial)
        self._exit = ExitStack()
        self._lanes = lanes or self._exit.enter_context(Lanes())
        self._exit.callback(self.flush)
        self._buffers: list[torch.Tensor] = []
        self._snapshot: Handle | None = None
        self._write: Handle | None = None
        if optimizer is not None:
            hook = optimizer.register_step_pre_hook(lambda *_: self.wait_snapshot())
            self._exit.callback(hook.remove)

    def save(self, step: int, state: Mapping[str, Any]) -> Handle:
        """Begin to save `state`, once the checkpoint before is written.

        Args:
            step: Names the checkpoint.
            state: As for `torch.distributed.checkpoint.save`: state dicts of the model, the
                optimizer, the sampler. Values that are no tensors are copied at once.

        Returns:
            A handle whose `wait()` returns the path of the written checkpoint.

        Raises:
            TaskError: If the checkpoint before could not be written.
        """
        self.flush()
        values, tree = tree_flatten(dict(state))
        tensors = [value.detach() for value in values if isinstance(value, torch.Tensor)]
        self._fit_buffers(tensors)
        self._snapshot = self._lanes.submit(
            _copy, tensors, self._buffers, lane="copy", kind=Kind.COPY, name=SNAPSHOT
        )
        buffers = iter(self._buffers)
        copies = [
            next(buffers) if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            for value in values
        ]
        self._write = self._lanes.submit(
            self._write_whole,
            step,
            tree_unflatten(copies, tree),
            lane="host",
            kind=Kind.COPY,
            name=WRITE,
            after=[self._snapshot],
        )
        return self._write

    def wait_snapshot(self) -> None:
        """Wait until the tensors may change."""
        if self._snapshot is not None:
            with self._lanes.span("wait for snapshot", Kind.DATA):
                self._snapshot.wait()
            self._snapshot = None

    def flush(self) -> None:
        """Wait until the checkpoint is written."""
        self.wait_snapshot()
        if self._write is not None:
            write, self._write = self._write, None
            write.wait()

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint, if there is one."""
        return max(self._whole(), default=None)

    def load(self, state: dict[str, Any], path: Path | None = None) -> None:
        """Read a checkpoint, the latest unless `path` is given, into the tensors of `state`.

        Values that are no tensors are replaced in `state`.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = path or self.latest()
        if path is None:
            raise FileNotFoundError(f"{self._folder} holds no checkpoint; save one first")
        with warnings.catch_warnings():
            # No process group is meant to take part.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(state, checkpoint_id=path, no_dist=True)

    def close(self) -> None:
        """Finish the checkpoint that is being written."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fit_buffers(self, tensors: list[torch.Tensor]) -> None:
        fits = [(b.shape, b.dtype) for b in self._buffers] == [(t.shape, t.dtype) for t in tensors]
        if not fits:
            self._buffers = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors
            ]

    def _whole(self) -> list[Path]:
        found = self._folder.glob(f"{PREFIX}*")
        return sorted(path for path in found if re.fullmatch(rf"{PREFIX}\d+", path.name))

    def _write_whole(self, step: int, state: dict[str, Any]) -> Path:
        path = self._folder / f"{PREFIX}{step:08d}"
        partial = self._folder / f"{PARTIAL}{path.name}"
        _write(state, partial)
        _sync(partial)
        if path.exists():  # Saved again after a return to an older one.
            shutil.rmtree(path)
        os.replace(partial, path)
        _sync(self._folder)
        for old in self._whole()[: -self._keep]:
            shutil.rmtree(old)
        return path


def _copy(tensors: list[torch.Tensor], buffers: list[torch.Tensor]) -> None:
    for tensor, buffer in zip(tensors, buffers, strict=True):
        buffer.copy_(tensor, non_blocking=True)


def _write(state: dict[str, Any], folder: Path) -> None:
    """Do as `torch.distributed.checkpoint.save` does on one rank.

    That one warns without a process group, and warnings cannot be turned off in one thread.
    """
    writer, planner = FileSystemWriter(folder), DefaultSavePlanner()
    writer.fs = _InPieces()
    planner.set_up_planner(state, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    own_plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([own_plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    written = writer.write_data(plan, planner)
    written.wait()
    writer.finish(metadata, [written.value()])


class _InPieces(FileSystem):
    """Writes large values in pieces.

    For 16 MiB in one call, Linux took several times the processor time on ext4.
    """

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """Open a file."""
        if mode != "wb":
            raise ValueError(f"mode must be 'wb', got {mode!r}")
        with _PieceWriter(io.FileIO(path, mode)) as stream:
            yield stream


class _PieceWriter(io.BufferedWriter):
    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for begin in range(0, len(view), PIECE_BYTES):
            super().write(view[begin : begin + PIECE_BYTES])
        return len(view)


def _sync(folder: Path) -> None:
    """Write the names in `folder` to disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
