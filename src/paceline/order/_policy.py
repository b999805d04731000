"""What every order of examples has in common, and the state that it is saved as."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown
from paceline.errors import StateMismatchError

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

    A *row* is an example's gradient or a sketch of it. While an epoch runs, `observe` takes rows in
    the order of processing, in chunks of any length; `end_epoch` makes the next order. An epoch may
    end early, examples may be observed again (the first row in an epoch counts), or not at all.

    Attributes:
        name: What states call the policy.
        needs_rows: Whether it learns; if not, there is no need to sketch.
        num_examples: Number of examples of the dataset.
        epoch: The epoch under way: how many have ended.
    """

    name: str
    needs_rows: bool
    num_examples: int
    epoch: int

    @abstractmethod
    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of `epoch` in order, each once, shape `(num_examples,)`.

        Raises:
            ValueError: If it is not known now; one that learns knows that of `self.epoch` only.
        """

    @abstractmethod
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

    @abstractmethod
    def end_epoch(self) -> None:
        """Go to the next epoch, and make its order from what was observed."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return plain values and NumPy arrays, copied, equal on all ranks."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, on any number of ranks; `state` is left unchanged.

        Raises:
            StateMismatchError: If it is of another policy, dataset, seed or version, or damaged;
                then nothing is loaded.
        """


def identity_of(name: str, num_examples: int, seed: int, **options: Any) -> dict[str, Any]:
    """Return what a state must agree on, checked."""
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return {
        "version": VERSION,
        "policy": name,
        "num_examples": num_examples,
        "seed": seed,
        **options,
    }


def saved_epoch(state: Mapping[str, Any], identity: Mapping[str, Any]) -> int:
    """Return the epoch of a saved state; refuse the state of something else."""
    for key, value in identity.items():
        if key not in state:
            raise StateMismatchError(f"this is no state of an order: it has no {key!r}")
        if state[key] != value:
            raise StateMismatchError(
                f"the state has {key} {shown(state[key])}, and this order has {shown(value)}; "
                "make the order as it was made for the run that saved it"
            )
    return saved_count(state, "epoch")


def shuffled(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the plain shuffle of an epoch, the same as that of `paceline.balance`."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def saved_count(state: Mapping[str, Any], key: str) -> int:
    """Return a whole number from 0 up of a saved state."""
    value = state.get(key)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise StateMismatchError(f"the state is damaged: {key!r} is {shown(value)}")
    return int(value)


def saved_array(state: Mapping[str, Any], key: str, like: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a saved array of the shape and type of `like`."""
    try:
        value = np.array(state.get(key))
    except (ValueError, RecursionError):
        raise StateMismatchError(f"the state is damaged: {key!r} is no array") from None
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
