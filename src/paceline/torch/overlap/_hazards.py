"""Which unfinished task read or wrote which tensor, so that the next one waits for it."""

from collections.abc import Iterable
from typing import Any

from paceline.errors import GraphError
from paceline.torch.overlap._task import Handle, LaneTask

MIN_SWEEP = 1024


class _Access:
    __slots__ = ("limit", "readers", "writer")

    def __init__(self) -> None:
        self.writer: LaneTask | None = None
        self.readers: list[LaneTask] = []
        self.limit = 16

    @property
    def is_over(self) -> bool:
        writer_is_done = self.writer is None or self.writer.is_done
        return writer_is_done and all(reader.is_done for reader in self.readers)

    def add_reader(self, task: LaneTask) -> None:
        if len(self.readers) >= self.limit:
            self.readers = [reader for reader in self.readers if not reader.is_done]
            self.limit = 2 * len(self.readers) + 16
        self.readers.append(task)


class Hazards:
    """Tensors are told apart by their storage, so a view counts as the whole.

    Entries whose tasks have ended are dropped when the table has doubled, which keeps it at
    most twice as large as what is under way.
    """

    def __init__(self) -> None:
        self._accesses: dict[object, _Access] = {}
        self._limit = MIN_SWEEP

    def __len__(self) -> int:
        return len(self._accesses)

    def order(self, task: LaneTask, reads: Iterable[Any], writes: Iterable[Any]) -> list[LaneTask]:
        """Return the unfinished tasks that must end before `task`, and note what it does.

        Raises:
            GraphError: If an unfinished task that another thread submitted writes what this
                one writes: which of both comes last would be chance.
        """
        before = [earlier for tensor in reads for earlier in self._read(task, tensor)]
        before += [earlier for tensor in writes for earlier in self._write(task, tensor)]
        if len(self._accesses) > self._limit:
            live = {key: access for key, access in self._accesses.items() if not access.is_over}
            self._accesses, self._limit = live, 2 * len(live) + MIN_SWEEP
        return before

    def _read(self, task: LaneTask, tensor: Any) -> list[LaneTask]:
        access = self._access(tensor)
        before = [] if access.writer is None or access.writer.is_done else [access.writer]
        access.add_reader(task)
        return before + _maker(tensor)

    def _write(self, task: LaneTask, tensor: Any) -> list[LaneTask]:
        access = self._access(tensor)
        before = _maker(tensor) + [reader for reader in access.readers if reader is not task]
        writer = access.writer
        if writer is not None and not writer.is_done and writer is not task:
            _check_ordered(writer, task)
            before.append(writer)
        access.writer = task
        access.readers.clear()
        return before

    def _access(self, tensor: Any) -> _Access:
        key = tensor if type(tensor) is Handle else tensor.untyped_storage()._cdata
        access = self._accesses.get(key)
        if access is None:
            access = self._accesses[key] = _Access()
        return access


def _maker(tensor: Any) -> list[LaneTask]:
    """Return the task whose result the tensor is to be, if it is a handle."""
    return [tensor.task] if type(tensor) is Handle else []


def _check_ordered(writer: LaneTask, task: LaneTask) -> None:
    if writer.info.thread != task.info.thread and writer not in task.before:
        raise GraphError(
            f"a tensor is written by {writer} and by {task}, which different threads submitted "
            "and nothing orders; pass the handle of one as `after` of the other"
        )
