"""A checkpoint that is being written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.errors import CheckpointError, TaskError
from paceline.torch.overlap import Handle


class PendingCheckpoint:
    """A checkpoint that is being written.

    Attributes:
        step: Whose it is.
        is_told: Whether `wait` has raised.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.is_told = False
        self._error: BaseException | None = None
        self._path: Path | None = None
        self._last: Handle | None = None

    def run(self, function: Callable[..., Path | None], *args: Any) -> None:
        """Do one part of the work, unless a part before failed; errors are kept for `wait`."""
        if self._error is None:
            try:
                self._path = function(*args)
            except Exception as error:
                self._error = error

    def end_with(self, last: Handle) -> None:
        """Take `last` as the task of the last part."""
        self._last = last

    def wait(self) -> Path:
        """Wait until it is written, and return its folder.

        Raises:
            CheckpointError: If it could not be written; says why.
        """
        try:
            if self._last is not None:
                self._last.wait()
        except TaskError as error:  # The lanes were left by an error, and cancelled it.
            self._error = error
        if self._error is not None or self._path is None:
            self.is_told = True
            raise CheckpointError(
                f"the checkpoint of step {self.step} could not be written: "
                f"{type(self._error).__name__}: {self._error}; nothing of it is left, and the "
                "checkpoints before are as they were"
            ) from self._error
        return self._path
