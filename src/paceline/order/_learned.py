"""Orders that a rule makes from what the epochs before showed."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown
from paceline.errors import StateMismatchError
from paceline.order._policy import (
    OrderPolicy,
    check_range,
    identity_of,
    saved_array,
    saved_count,
    saved_epoch,
    saved_order,
    shuffled,
)
from paceline.order._rows import checked_rows

# What was learnt, by name. A rule keeps nothing else, so this is all that a state needs.
Arrays = dict[str, NDArray[Any]]


class Rule(ABC):
    """How an order learns; a value that never changes. `seed` is that of its shuffles."""

    seed: int

    def options(self) -> dict[str, Any]:
        """Return what a state must agree on."""
        return {}

    def saved(self) -> dict[str, Any]:
        """Return what `placed` takes from a state."""
        return {}

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Return, for arrays of `begin` that hold codes, the range [begin, end) of their values."""
        return {}

    @abstractmethod
    def placed(self, order: NDArray[np.int64], state: Mapping[str, Any]) -> Self:
        """Return this rule for an order, with what `saved` gave; a state may say it otherwise."""

    @abstractmethod
    def begin(self, dim: int) -> Arrays:
        """Return empty arrays for what is learnt from rows of `dim` columns."""

    @abstractmethod
    def learn(
        self, learnt: Arrays, ids: NDArray[np.int64], rows: NDArray[np.float32], epoch: int
    ) -> None:
        """Take checked rows into `learnt`."""

    @abstractmethod
    def next_order(self, learnt: Arrays, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the order of `epoch` after `order`, and be ready to learn anew."""


@final
class LearnedOrder(OrderPolicy):
    """An order that learns from rows by a rule; the first epoch is a plain shuffle."""

    needs_rows = True

    def __init__(self, name: str, num_examples: int, rule: Rule) -> None:
        self.name, self.num_examples, self.epoch = name, num_examples, 0
        self._identity = identity_of(name, num_examples, rule.seed, **rule.options())
        self._order = shuffled(num_examples, rule.seed, 0)
        self._rule = rule.placed(self._order, rule.saved())
        self._dim: int | None = None
        self._learnt: Arrays = {}

    def order(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self.epoch:
            raise ValueError(
                f"this order learns, and knows epoch {self.epoch} only, not {epoch}; call "
                "end_epoch() after each epoch, or load the state that was saved"
            )
        return self._order.copy()

    def observe(
        self, example_ids: ArrayLike, rows: ArrayLike, scales: ArrayLike | None = None
    ) -> None:
        ids, floats = checked_rows(self.num_examples, example_ids, rows, scales)
        dim = floats.shape[1]
        if self._dim is None:
            self._learnt = self._rule.begin(dim)
            self._dim = dim
        if dim != self._dim:
            raise ValueError(f"rows must have {self._dim} columns as before, got {dim}")
        self._rule.learn(self._learnt, ids, floats, self.epoch)

    def end_epoch(self) -> None:
        self.epoch += 1
        if self._dim is not None:
            self._order = self._rule.next_order(self._learnt, self._order, self.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {
            **self._identity,
            "epoch": self.epoch,
            "order": self._order.copy(),
            "dim": self._dim or 0,
            "learnt": {key: value.copy() for key, value in self._learnt.items()},
            **self._rule.saved(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        epoch = saved_epoch(state, self._identity)
        order = saved_order(state, "order", self.num_examples)
        rule = self._rule.placed(order, state)
        dim = saved_count(state, "dim") or None
        learnt = _saved_arrays(state, rule, dim) if dim else {}
        self.epoch, self._order, self._rule = epoch, order, rule
        self._dim, self._learnt = dim, learnt


def _saved_arrays(state: Mapping[str, Any], rule: Rule, dim: int) -> Arrays:
    saved = state.get("learnt")
    if not isinstance(saved, Mapping):
        raise StateMismatchError(f"the state is damaged: 'learnt' is {shown(saved)}")
    # Arrays have a column for each; checked before memory is asked for.
    sizes = [value.size for value in saved.values() if isinstance(value, np.ndarray)]
    if dim > max(sizes, default=0):
        raise StateMismatchError(f"the state is damaged: 'dim' is {shown(dim)}")
    learnt = {key: saved_array(saved, key, like) for key, like in rule.begin(dim).items()}
    for key, (begin, end) in rule.ranges().items():
        check_range(key, learnt[key], begin, end)
    return learnt
