"""An order of examples that comes from elsewhere, and its state as plain values."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline._files import shown, told
from paceline.balance._config import BalanceConfig
from paceline.balance._shards import Shards
from paceline.errors import StateMismatchError

MAX_EPOCHS_AHEAD = 1_000_000
ARRAY_KEYS = {"dtype", "shape", "base64"}


class ExampleOrder(Protocol):
    """Says in which order the examples of an epoch come; `paceline.order` has many.

    It must be equal on every rank. One that `needs_rows` learns while `epoch` is under way,
    and knows the order of that epoch only.
    """

    @property
    def name(self) -> str:
        """What states call it."""

    @property
    def needs_rows(self) -> bool:
        """Whether it learns."""

    @property
    def num_examples(self) -> int:
        """Number of examples of the dataset."""

    @property
    def epoch(self) -> int:
        """The epoch under way: how many have ended."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return all examples, each once, shape `(num_examples,)`."""

    def end_epoch(self) -> None:
        """Go to the next epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and arrays, copied."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood."""


def check_keeps_order(config: BalanceConfig, shards: Shards | None) -> None:
    """Raise a `ValueError` if plans would bring the examples in another order."""
    for name, kept in (("window", 1), ("longest_first", False)):
        value = getattr(config, name)
        if value != kept:
            raise ValueError(
                f"an order of examples needs {name}={kept}, got {value}, which undoes the order; "
                "leave out one of them"
            )
    if shards is not None:
        raise ValueError(
            "shards bring examples in an order of their own, which undoes another; leave out one"
        )


def knows(order: ExampleOrder, epoch: int) -> bool:
    """Whether `order` can say how the examples of `epoch` come."""
    return not order.needs_rows or order.epoch == epoch


def go_to_epoch(order: ExampleOrder, epoch: int) -> None:
    """End epochs of `order` until `epoch` is under way.

    Raises:
        ValueError: If it learns and is past that epoch, or far before it; then nothing changes.
    """
    if epoch - order.epoch > MAX_EPOCHS_AHEAD:
        raise ValueError(
            f"epoch must be at most {MAX_EPOCHS_AHEAD:,} after that of the order "
            f"({order.epoch}), got {shown(epoch)}; epochs are counted from 0"
        )
    if order.needs_rows and order.epoch > epoch:
        raise ValueError(
            f"the order {order.name!r} learns, stands at epoch {order.epoch} and cannot go back to "
            f"{epoch}; load a state that was saved then"
        )
    while order.epoch < epoch:
        order.end_epoch()


def plain_order(order: ExampleOrder) -> dict[str, Any]:
    """Return the state of `order`, safe to save as JSON."""
    state: dict[str, Any] = _plain(order.state_dict())
    return state


def load_plain_order(order: ExampleOrder | None, state: Mapping[str, Any], epoch: int) -> None:
    """Load what a sampler's `state` says of its order, and go to `epoch`.

    Raises:
        StateMismatchError: If it is of another order, or damaged.
    """
    saved = state.get("order")
    if order is None or not isinstance(saved, Mapping):
        if order is None and saved is None:
            return
        present = "plain reshuffling" if order is None else repr(order.name)
        raise StateMismatchError(
            f"the state was saved {'without' if saved is None else 'with'} an order of its own, "
            f"and this run has {present}; make the sampler as it was made for the saved run"
        )
    try:
        order.load_state_dict(_with_arrays(saved))
    except RecursionError:
        raise StateMismatchError("the state is damaged: its order is nested too deeply") from None
    ahead = epoch - order.epoch
    # At the end of an epoch the sampler stands at the next, which its order does not know yet.
    if ahead > MAX_EPOCHS_AHEAD or (order.needs_rows and not 0 <= ahead <= 1):
        raise StateMismatchError(
            f"the state is damaged: its order is {'past' if ahead < 0 else 'long before'} epoch "
            f"{shown(epoch)}, at {shown(order.epoch)}"
        )
    go_to_epoch(order, epoch)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "base64": base64.b64encode(np.ascontiguousarray(value).data).decode("ascii"),
        }
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(saved: Any) -> Any:
    if not isinstance(saved, Mapping):
        return saved
    if saved.keys() != ARRAY_KEYS:
        return {key: _with_arrays(part) for key, part in saved.items()}
    try:
        flat = np.frombuffer(base64.b64decode(saved["base64"], validate=True), saved["dtype"])
        return flat.reshape(saved["shape"])
    except (TypeError, ValueError, SyntaxError, OverflowError, binascii.Error) as error:
        raise StateMismatchError(
            f"the state is damaged: an array of its order: {told(error)}"
        ) from None
