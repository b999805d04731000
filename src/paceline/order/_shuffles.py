"""Orders that learn nothing: pure functions of seed and epoch."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.order._policy import OrderPolicy, shuffled


class RandomReshuffling(OrderPolicy):
    """A new shuffle each epoch: the default of training, and hard to beat.

    Examples:
        >>> RandomReshuffling(4, seed=0).order(epoch=0).tolist()
        [2, 0, 1, 3]
    """

    name = "random-reshuffling"

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the shuffle of `epoch`."""
        return shuffled(self.num_examples, self._seed, _checked(epoch))


class ShuffleOnce(OrderPolicy):
    """One shuffle for all epochs."""

    name = "shuffle-once"

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the one shuffle."""
        _checked(epoch)
        return shuffled(self.num_examples, self._seed, 0)


class FlipFlop(OrderPolicy):
    """A new shuffle every other epoch, and the same backwards in between.

    Source: S. Rajput, K. Lee, D. Papailiopoulos, "Permutation-based SGD: is random
    optimal?", ICLR 2022.
    """

    name = "flip-flop"

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return a shuffle in even epochs, and the last one backwards in odd ones."""
        forwards = shuffled(self.num_examples, self._seed, _checked(epoch) // 2)
        return forwards[::-1].copy() if epoch % 2 else forwards


class Stratified(OrderPolicy):
    """A new shuffle each epoch in which every class is spread evenly over the epoch.

    Of a class of k examples each k-th part of the epoch gets one, at a random place within
    that part. It costs nothing, needs labels, and is the baseline that an order which
    learns has to beat. Takes O(n log n) time.

    Args:
        labels: Class of each example, shape `(num_examples,)`, whole numbers or text.
        seed: Of the shuffles.

    Examples:
        >>> labels = [0, 0, 0, 0, 1, 1]
        >>> order = Stratified(labels).order(epoch=0)
        >>> [labels[example] for example in order]
        [0, 1, 0, 0, 0, 1]
    """

    name = "stratified"

    def __init__(self, labels: ArrayLike, *, seed: int = 0) -> None:
        label = np.asarray(labels)
        if label.ndim != 1:
            raise ValueError(f"labels must have shape (num_examples,), got {label.shape}")
        super().__init__(len(label), seed=seed)
        _, self._classes, self._counts = np.unique(label, return_inverse=True, return_counts=True)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the stratified shuffle of `epoch`."""
        rng = np.random.default_rng([self._seed, _checked(epoch)])
        order = rng.permutation(self.num_examples)
        by_class = order[np.argsort(self._classes[order], kind="stable")]
        begin = np.cumsum(self._counts) - self._counts
        rank = np.arange(self.num_examples) - np.repeat(begin, self._counts)
        place = (rank + rng.random(self.num_examples)) / np.repeat(self._counts, self._counts)
        return np.asarray(by_class[np.argsort(place, kind="stable")])

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "class_counts": self._counts.tolist()}


def _checked(epoch: int) -> int:
    if epoch < 0:
        raise ValueError(f"epoch must not be negative, got {epoch}")
    return epoch
