"""What every order of examples has in common, and the state that it is saved as."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.errors import StateMismatchError
from paceline.order._rows import checked_rows

VERSION = 1


class EpochOrder(Protocol):
    """Says in which order the examples of an epoch come; equal on every rank.

    Global batch b of an epoch holds `order(epoch)[b * batch_size : (b + 1) * batch_size]`.
    """

    @property
    def num_examples(self) -> int:
        """Number of examples of the dataset."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return all examples, each once, shape `(num_examples,)`."""


class OrderPolicy(ABC):
    """An `EpochOrder` that may learn from the rows of the examples that were processed.

    A *row* is an example's gradient or a sketch of it. While an epoch runs, `observe` takes
    the rows in the order of processing, in chunks of any length; `end_epoch` makes the
    next order. An epoch may end early, an example may be observed again (its first row in
    an epoch counts), and nothing at all may be observed.

    Args:
        num_examples: Number of examples of the dataset.
        seed: Of all that is random; equal on all ranks.

    Attributes:
        name: What states call the policy.
        needs_rows: Whether it learns; if not, there is no need to sketch.

    Raises:
        ValueError: If a number is out of range.
    """

    name: ClassVar[str]
    needs_rows: ClassVar[bool] = False

    def __init__(self, num_examples: int, *, seed: int = 0) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self._num_examples = num_examples
        self._seed = seed
        self._epoch = 0

    @property
    def num_examples(self) -> int:
        """Number of examples of the dataset."""
        return self._num_examples

    @property
    def epoch(self) -> int:
        """The epoch under way: how many have ended."""
        return self._epoch

    @abstractmethod
    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of `epoch` in order, each once, shape `(num_examples,)`.

        Raises:
            ValueError: If the order of that epoch is not known now; a policy that learns
                knows that of `self.epoch` only.
        """

    def observe(
        self, example_ids: ArrayLike, rows: ArrayLike, scales: ArrayLike | None = None
    ) -> None:
        """Learn from examples that were processed; call it with the same values on all ranks.

        Args:
            example_ids: In the order of processing, shape `(num_rows,)`.
            rows: Their gradients or sketches, shape `(num_rows, dim)`, floats or bytes.
            scales: Factor of each row, shape `(num_rows,)`; unset for 1.

        Raises:
            ValueError: If shapes disagree or a value is bad; then nothing is learnt.
        """
        checked_rows(self._num_examples, example_ids, rows, scales)

    def end_epoch(self) -> None:
        """Go to the next epoch, and make its order from what was observed."""
        self._epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and NumPy arrays, copied, equal on all ranks."""
        return {**self._identity(), "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, on any number of ranks; `state` is left unchanged.

        Raises:
            StateMismatchError: If the state is of another policy, dataset, seed or version,
                or damaged; then nothing is loaded.
        """
        for key, value in self._identity().items():
            if key not in state:
                raise StateMismatchError(f"this is no state of an order: it has no {key!r}")
            if state[key] != value:
                raise StateMismatchError(
                    f"the state has {key} {state[key]!r}, and this order has {value!r}; make the "
                    "order as it was made for the run that saved it"
                )
        self._epoch = saved_count(state, "epoch")

    def _identity(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "policy": self.name,
            "num_examples": self._num_examples,
            "seed": self._seed,
        }


def shuffled(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the plain shuffle of an epoch, the same as that of `paceline.balance`."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def saved_count(state: Mapping[str, Any], key: str) -> int:
    """Return a whole number from 0 up of a saved state."""
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise StateMismatchError(f"the state is damaged: {key!r} is {value!r}")
    return int(value)


def saved_array(state: Mapping[str, Any], key: str, like: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a saved array of the shape and type of `like`."""
    value = np.array(state.get(key))
    if value.shape != like.shape or value.dtype != like.dtype:
        raise StateMismatchError(
            f"the state is damaged: {key!r} must have shape {like.shape} of {like.dtype}, got "
            f"{value.shape} of {value.dtype}"
        )
    return value


def saved_order(state: Mapping[str, Any], key: str, num_examples: int) -> NDArray[np.int64]:
    """Return a copy of a saved order of all examples."""
    order = saved_array(state, key, np.empty(num_examples, dtype=np.int64))
    if not np.array_equal(np.sort(order), np.arange(num_examples)):
        raise StateMismatchError(f"the state is damaged: {key!r} does not hold each example once")
    return order


def check_range(key: str, values: NDArray[Any], begin: int, end: int) -> None:
    """Raise `StateMismatchError` unless all saved values lie in [begin, end)."""
    bad = values[(values < begin) | (values >= end)]
    if bad.size:
        raise StateMismatchError(
            f"the state is damaged: {key!r} must lie in [{begin}, {end}), but holds {bad[0]}"
        )
