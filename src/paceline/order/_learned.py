"""An order that is made from what the epochs before it showed."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.errors import StateMismatchError
from paceline.order._policy import OrderPolicy, saved_array, saved_count, saved_order, shuffled
from paceline.order._rows import checked_rows


class LearnedOrder(OrderPolicy):
    """Base of the orders that learn from rows; the first epoch is a plain shuffle."""

    needs_rows = True

    def __init__(self, num_examples: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, seed=seed)
        self._order = shuffled(num_examples, seed, 0)
        self._dim: int | None = None
        self._learnt: dict[str, NDArray[Any]] = {}

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of the epoch under way; the next is unknown until it ends."""
        if epoch != self._epoch:
            raise ValueError(
                f"this order learns, and knows epoch {self._epoch} only, not {epoch}; call "
                "end_epoch() after each epoch, or load the state that was saved"
            )
        return self._order.copy()

    def observe(
        self, example_ids: ArrayLike, rows: ArrayLike, scales: ArrayLike | None = None
    ) -> None:
        """Learn from examples that were processed; see `OrderPolicy.observe`."""
        ids, floats = checked_rows(self.num_examples, example_ids, rows, scales)
        dim = floats.shape[1]
        if self._dim is None:
            self._learnt = self._begin(dim)
            self._dim = dim
        if dim != self._dim:
            raise ValueError(f"rows must have {self._dim} columns as before, got {dim}")
        self._learn(ids, floats)

    def end_epoch(self) -> None:
        """Make the order of the next epoch."""
        super().end_epoch()
        if self._dim is not None:
            self._order = self._next_order()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and NumPy arrays, copied, equal on all ranks."""
        return {
            **super().state_dict(),
            "order": self._order.copy(),
            "dim": self._dim or 0,
            "learnt": {key: value.copy() for key, value in self._learnt.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; see `OrderPolicy.load_state_dict`."""
        before = self.__dict__.copy()
        try:
            self._load(state)
        except StateMismatchError:
            self.__dict__.update(before)
            raise

    def _load(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._order = saved_order(state, "order", self.num_examples)
        self._adopt(state)
        self._dim = saved_count(state, "dim") or None
        self._learnt = {}
        if self._dim is not None:
            learnt = state.get("learnt")
            if not isinstance(learnt, Mapping):
                raise StateMismatchError(f"the state is damaged: 'learnt' is {learnt!r}")
            empty = self._begin(self._dim)
            self._learnt = {key: saved_array(learnt, key, like) for key, like in empty.items()}
            self._check(self._learnt)

    def _adopt(self, state: Mapping[str, Any]) -> None:
        """Take over what a state may say otherwise than this order was made."""

    def _check(self, learnt: Mapping[str, NDArray[Any]]) -> None:
        """Raise `StateMismatchError` if loaded arrays hold what cannot be."""

    @abstractmethod
    def _begin(self, dim: int) -> dict[str, NDArray[Any]]:
        """Return empty arrays for what is learnt from rows of `dim` columns."""

    @abstractmethod
    def _learn(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Take checked rows into `_learnt`."""

    @abstractmethod
    def _next_order(self) -> NDArray[np.int64]:
        """Return the order of `self.epoch`, and be ready to learn anew."""
