"""A module that finishes what is under way before anything is read through it."""

import weakref
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.hooks import RemovableHandle


class FlushingModule(torch.nn.Module):
    """Flushes before its parameters or its state are read, written or moved; is not copied."""

    @abstractmethod
    def flush(self) -> None:
        """Finish what is under way."""

    @abstractmethod
    def close(self) -> None:
        """Flush, and leave nothing behind."""

    @abstractmethod
    def _abandon(self, error: BaseException) -> None:
        """Leave nothing behind after `error`; may raise a better one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Close.

        Raises:
            TransferError: In place of a backend's error; names the rank that is missing.
        """
        if error is None:
            self.close()
        else:
            self._abandon(error)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied and pickled."""
        raise TypeError(
            f"{type(self).__name__} holds threads and connections, so it cannot be copied or "
            "pickled; copy model.module, or save model.state_dict()"
        )

    def flush_before_state_of(self, optimizer: torch.optim.Optimizer) -> list[RemovableHandle]:
        """Flush before `optimizer`'s state is read or loaded, too."""
        method = weakref.WeakMethod(self.flush)

        def flush(*_: Any) -> None:
            if (alive := method()) is not None:
                alive()

        return [
            optimizer.register_state_dict_pre_hook(flush),
            optimizer.register_load_state_dict_pre_hook(flush),
        ]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then list the parameters."""
        self.flush()
        return super().named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then return the state; keys begin with `module.`, as DDP's."""
        self.flush()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Flush, then load."""
        self.flush()
        return super().load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Flush when leaving training."""
        if not mode:
            self.flush()
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        if name == "module":
            self.flush()
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.flush()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
