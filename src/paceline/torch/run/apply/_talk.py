"""What ranks tell each other before anything is changed: on CPU, in a group of their own."""

import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist

from paceline.torch.ranks import all_gather_bytes, from_rank_0
from paceline.torch.run.apply._loss_form import Unfit

T = TypeVar("T")


class Talk:
    """All ranks; every call is collective."""

    def __init__(self) -> None:
        self._group: Any = dist.new_group(backend="gloo")
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()

    def together(self, call: Callable[[], T]) -> T:
        """Return what `call` does on this rank; if it raises on one, all raise that.

        Raises:
            Unfit: On every rank alike; names the rank.
        """
        reason, result = "", None
        try:
            result = call()
        except Exception as error:  # The script would have gone on without us.
            own = f"{type(error).__name__}: " if not isinstance(error, Unfit) else ""
            reason = f"{own}{error}"
        reasons = [blob.decode() for blob in all_gather_bytes(reason.encode() or b" ", self._group)]
        for rank, one in enumerate(reasons):
            if one.strip():
                raise Unfit(f"rank {rank}: {one}")
        return result  # type: ignore[return-value]  # call() returned on every rank

    def same(self, what: str, text: str) -> None:
        """Check that all ranks say the same.

        Raises:
            Unfit: On every rank alike.
        """
        if len({blob.decode() for blob in all_gather_bytes(text.encode(), self._group)}) > 1:
            raise Unfit(f"ranks differ in their {what}")

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the arrays of all ranks."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        blobs = all_gather_bytes(buffer.getvalue(), self._group)
        return [np.load(io.BytesIO(blob), allow_pickle=False) for blob in blobs]

    def sum(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over ranks."""
        total = torch.from_numpy(array)
        dist.all_reduce(total, group=self._group)
        return total.numpy()

    def of_first(self, array: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rank 0's array."""
        return from_rank_0(array, self._group)
