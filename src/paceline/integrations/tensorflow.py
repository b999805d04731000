"""Balanced batches in TensorFlow: a `tf.data` source from a plan, for a strategy and a loop."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance import BalanceConfig, MicroBatch
from paceline.cost import ExampleCost
from paceline.errors import MissingExtraError
from paceline.integrations._planned_run import PlannedRun, Record, Source, padded_record

try:
    import tensorflow as tf
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise MissingExtraError(
        "paceline.integrations.tensorflow needs TensorFlow; install it with: "
        "pip install 'paceline[tensorflow]'"
    ) from None

PREFETCHED = 2


class BalancedLoader:
    """Yields the micro-batches of this worker for one epoch, or for what is left of it.

    A batch is a dict of tensors: those of the examples, padded to the longest; `"size"`, the
    length of each; `"example"`, its index; `"weight"`, what its loss counts; and
    `"is_step_end"`. The gradient of the sum of `weight` times loss, summed over a step and
    averaged over replicas (`ReduceOp.MEAN`), is that of the mean over the global batch.

    Args:
        source: Examples by index, each a mapping from names to arrays.
        sizes: Size of each example, shape `(num_examples,)`.
        config: What fixes who gets which example; its `num_workers` is filled in.
        strategy: A `MultiWorkerMirroredStrategy` of one replica per process; unset for one
            process.
        cost: Cost of an example by its size; unset for the size.

    Raises:
        ValueError: If a worker has several replicas, or a value is bad.
    """

    def __init__(
        self,
        source: Source,
        sizes: ArrayLike,
        config: BalanceConfig,
        *,
        strategy: Any = None,
        cost: ExampleCost | None = None,
    ) -> None:
        self._source = source
        self._strategy = tf.distribute.get_strategy() if strategy is None else strategy
        rank, num_workers = _place_of(self._strategy)
        self._run = PlannedRun(sizes, config, rank=rank, num_processes=num_workers, cost=cost)

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one if none is."""
        return self._run.cursor.epoch

    def __iter__(self) -> Iterator[Any]:
        self._run.check_digests(self._gather)
        planned = self._run.rest_of_epoch()
        # With one replica per process there is nothing to distribute, and a distributed dataset
        # asks all workers before each batch whether any has one left.
        yield from self._run.count(planned, self._dataset(planned))

    def _dataset(self, planned: list[MicroBatch]) -> Any:
        def records() -> Iterator[Record]:
            return (padded_record(self._source, batch) for batch in planned)

        first = padded_record(self._source, planned[0])
        signature = {name: _spec_of(np.asarray(value)) for name, value in first.items()}
        made = tf.data.Dataset.from_generator(records, output_signature=signature)
        return made.prefetch(PREFETCHED)

    def _gather(self, own: NDArray[np.uint8]) -> NDArray[np.uint8]:
        row = tf.constant(own[None].astype(np.int32))
        rows: NDArray[np.uint8] = self._strategy.gather(row, axis=0).numpy()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps; plain values, equal on all workers."""
        return self._run.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of workers.

        Holds from the next iteration on.

        Raises:
            StateMismatchError: If the state is of other examples or another config.
        """
        self._run.load_state_dict(state)


def _place_of(strategy: Any) -> tuple[int, int]:
    """Return which worker this is, and of how many."""
    resolver = strategy.cluster_resolver
    workers = resolver.cluster_spec().as_dict().get("worker", [None]) if resolver else [None]
    if strategy.num_replicas_in_sync != len(workers):
        raise ValueError(
            f"each worker must have one replica, got {strategy.num_replicas_in_sync} replicas of "
            f"{len(workers)} workers; start a process for each device"
        )
    return (resolver.task_id or 0 if resolver else 0), len(workers)


def _spec_of(value: NDArray[Any]) -> Any:
    """Return what the same array may be in other batches: of another count and length."""
    shape = [None] * min(value.ndim, 2) + list(value.shape[2:])
    return tf.TensorSpec(shape if value.ndim > 1 else [None] * value.ndim, value.dtype)
