"""Orders that learn nothing: pure functions of seed and epoch."""

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.order._policy import OrderPolicy, identity_of, saved_epoch, shuffled
from paceline.order._rows import checked_rows


@final
class FixedOrder(OrderPolicy):
    """An order that a function of the epoch gives."""

    needs_rows = False

    def __init__(
        self,
        name: str,
        num_examples: int,
        order_of: Callable[[int], NDArray[np.int64]],
        *,
        seed: int,
        **options: Any,
    ) -> None:
        self._identity = identity_of(name, num_examples, seed, **options)
        self.name, self.num_examples, self.epoch = name, num_examples, 0
        self._order_of = order_of

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the order of `epoch`, 0 or more."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        return self._order_of(epoch)

    def observe(
        self, example_ids: ArrayLike, rows: ArrayLike, scales: ArrayLike | None = None
    ) -> None:
        """Check what a policy that learns would learn from."""
        checked_rows(self.num_examples, example_ids, rows, scales)

    def end_epoch(self) -> None:
        """Go to the next epoch."""
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, equal on all ranks."""
        return {**self._identity, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; see `OrderPolicy.load_state_dict`."""
        self.epoch = saved_epoch(state, self._identity)


def random_reshuffling(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return a new shuffle each epoch: the default of training, and hard to beat.

    Examples:
        >>> random_reshuffling(4, seed=0).order(epoch=0).tolist()
        [2, 0, 1, 3]
    """
    return FixedOrder(
        "random-reshuffling",
        num_examples,
        lambda epoch: shuffled(num_examples, seed, epoch),
        seed=seed,
    )


def shuffle_once(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return one shuffle for all epochs."""
    return FixedOrder(
        "shuffle-once", num_examples, lambda _: shuffled(num_examples, seed, 0), seed=seed
    )


def flip_flop(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return a new shuffle in even epochs, and the same backwards in odd ones.

    References:
        S. Rajput, K. Lee, D. Papailiopoulos, "Permutation-based SGD: is random optimal?",
        ICLR 2022.
    """

    def order_of(epoch: int) -> NDArray[np.int64]:
        forwards = shuffled(num_examples, seed, epoch // 2)
        return forwards[::-1].copy() if epoch % 2 else forwards

    return FixedOrder("flip-flop", num_examples, order_of, seed=seed)


def stratified(labels: ArrayLike, *, seed: int = 0) -> OrderPolicy:
    """Return a new shuffle each epoch in which every class is spread evenly over the epoch.

    Of a class of k examples each k-th part of the epoch gets one, at a random place within
    that part. It costs nothing, needs labels, and is the baseline that an order which
    learns has to beat. Takes O(n log n) time.

    Args:
        labels: Class of each example, shape `(num_examples,)`, whole numbers or text.
        seed: Of the shuffles.

    Examples:
        >>> labels = [0, 0, 0, 0, 1, 1]
        >>> order = stratified(labels).order(epoch=0)
        >>> [labels[example] for example in order]
        [0, 1, 0, 0, 0, 1]
    """
    label = np.asarray(labels)
    if label.ndim != 1:
        raise ValueError(f"labels must have shape (num_examples,), got {label.shape}")
    num_examples = len(label)
    _, classes, counts = np.unique(label, return_inverse=True, return_counts=True)

    def order_of(epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(num_examples)
        by_class = order[np.argsort(classes[order], kind="stable")]
        begin = np.cumsum(counts) - counts
        rank = np.arange(num_examples) - np.repeat(begin, counts)
        place = (rank + rng.random(num_examples)) / np.repeat(counts, counts)
        return np.asarray(by_class[np.argsort(place, kind="stable")])

    return FixedOrder("stratified", num_examples, order_of, seed=seed, class_counts=counts.tolist())
