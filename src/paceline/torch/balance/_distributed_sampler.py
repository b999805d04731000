"""Balanced batches for frameworks that insist on a `DistributedSampler`."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DistributedSampler

from paceline.balance import BalanceConfig, EpochPlan, plan_epoch
from paceline.cost import ExampleCost, LinearCost, Worker, example_costs
from paceline.torch.balance._batch_sampler import warn_of_forgotten_epoch
from paceline.torch.ranks import Group, replica_of


class BalancedSampler(DistributedSampler[int]):
    """A `DistributedSampler` whose ranks finish each step together.

    Lightning, the Hugging Face Trainer and others leave a `DistributedSampler` alone and
    call its `set_epoch`. Give their loader `batch_size // num_replicas` examples per
    rank: the k-th such chunk of every rank together is global batch k, split evenly by
    cost. All ranks hold equally many examples, as many as torch's own sampler gives
    them, so plain data-parallel training needs no weights.

    Args:
        sizes: Size of each example, shape `(num_examples,)`.
        batch_size: Examples per step over all ranks; `num_replicas` must divide it.
        cost: Cost of an example by its size.
        num_replicas: Data-parallel ranks; see `BalancedBatchSampler`.
        rank: This rank, likewise.
        group: Process group, or one axis of a device mesh, to take both from.
        padded: Whether a batch is padded to its longest example.
        window: Steps over which examples may move.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the shuffle; equal on all ranks.
        drop_last: Whether the last examples that do not go round are left out; else up
            to `num_replicas - 1` examples are repeated, and count twice.
        workers: Speed and overhead of each rank; unset for equal ones.

    A forgotten `set_epoch` is made up for by going to the next epoch, with a warning.

    Raises:
        ValueError: If a value is bad or values do not fit together.

    Examples:
        >>> sizes = [4, 1, 2, 3, 6, 5]
        >>> ranks = [
        ...     BalancedSampler(sizes, 4, num_replicas=2, rank=rank, shuffle=False)
        ...     for rank in (0, 1)
        ... ]
        >>> [list(sampler) for sampler in ranks]
        [[0, 1, 4], [2, 3, 5]]
    """

    def __init__(
        self,
        sizes: ArrayLike,
        batch_size: int,
        *,
        cost: ExampleCost | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Group | None = None,
        padded: bool = False,
        window: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        workers: tuple[Worker, ...] | None = None,
    ) -> None:
        num_replicas, rank = replica_of(num_replicas, rank, group)
        size = np.asarray(sizes, dtype=np.float64)
        costs = example_costs(cost or LinearCost(), size)
        super().__init__(
            range(len(size)),  # type: ignore[arg-type]  # only its length is used
            num_replicas,
            rank,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        self.config = BalanceConfig(
            batch_size=batch_size,
            num_workers=num_replicas,
            padded=padded,
            window=window,
            tail="drop",
            shuffle=shuffle,
            seed=seed,
        )
        if len(size) < num_replicas:
            raise ValueError(
                f"{len(size)} examples are fewer than {num_replicas} replicas; use fewer replicas"
            )
        self.costs = costs
        self._workers = workers
        self._planned: tuple[int, NDArray[np.int64]] | None = None
        self._is_epoch_set = True
        self._has_warned = not shuffle

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        super().set_epoch(epoch)
        self._is_epoch_set = True

    def __iter__(self) -> Iterator[int]:
        if not self._is_epoch_set:
            self.set_epoch(self.epoch + 1)
            if not self._has_warned:
                self._has_warned = True
                warn_of_forgotten_epoch(self.epoch)
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._own_examples()
        return self._yield(self._planned[1])

    def _yield(self, examples: NDArray[np.int64]) -> Iterator[int]:
        # Not before: a loader with worker processes makes two iterators and uses one.
        self._is_epoch_set = False
        yield from examples.tolist()

    def _own_examples(self) -> NDArray[np.int64]:
        parts = []
        left = np.arange(len(self.costs))
        if len(left) >= self.config.batch_size:
            plan = self._plan(self.config, None)
            parts.append(_examples_of(plan, self.rank))
            left = np.delete(left, plan.examples)
        per_rank, over = divmod(len(left), self.num_replicas)
        num_last = self.num_replicas * (per_rank + (over > 0 and not self.drop_last))
        if num_last:
            order = np.random.default_rng([self.config.seed, self.epoch, 2]).permutation(left)
            last = replace(self.config, batch_size=num_last)
            plan = self._plan(last, np.resize(order if self.shuffle else left, num_last))
            parts.append(_examples_of(plan, self.rank))
        return np.concatenate(parts)

    def _plan(self, config: BalanceConfig, remaining: NDArray[np.int64] | None) -> EpochPlan:
        return plan_epoch(
            self.costs, config, epoch=self.epoch, workers=self._workers, remaining=remaining
        )


def _examples_of(plan: EpochPlan, worker: int) -> NDArray[np.int64]:
    return np.concatenate([plan.step_examples(step, worker) for step in range(plan.num_steps)])
