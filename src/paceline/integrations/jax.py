"""Balanced batches in JAX: read by Grain, padded to few shapes, gradients averaged exactly."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from paceline.balance import BalanceConfig, MicroBatch
from paceline.cost import ExampleCost
from paceline.errors import MissingExtraError
from paceline.integrations._planned_run import PlannedRun, Record, Source, padded_record

try:
    import jax
    from grain import MapDataset, MultiprocessingOptions
except ModuleNotFoundError as error:
    if error.name not in ("jax", "grain"):
        raise
    raise MissingExtraError(
        "paceline.integrations.jax needs JAX and Grain; install it with: "
        "pip install 'paceline[jax]'"
    ) from None


def rung(number: int) -> int:
    """Return the next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on, which is at most 1/2 larger.

    XLA compiles a program for each shape, and these are few.

    Examples:
        >>> [rung(number) for number in (1, 3, 5, 9, 13, 100)]
        [1, 3, 6, 12, 16, 128]
    """
    power = 1 << (number - 1).bit_length()
    return power * 3 // 4 if power >= 4 and number <= power * 3 // 4 else power


class MicroBatches:
    """A source for Grain: record `i` is the planned micro-batch `i` of this process.

    Whatever strides over the records or fetches them ahead, none is cut or joined with another.

    Args:
        source: Examples by index.
        planned: The micro-batches.
    """

    def __init__(self, source: Source, planned: Sequence[MicroBatch]) -> None:
        self._source, self._planned = source, planned

    def __len__(self) -> int:
        return len(self._planned)

    def __getitem__(self, index: int) -> Record:
        return padded_record(self._source, self._planned[index], rung)


class BalancedLoader:
    """Yields the micro-batches of this process for one epoch, or for what is left of it.

    A batch is a dict of arrays: those of the examples, padded to lengths that repeat, so that
    few programs are compiled; `"size"`, the length of each; `"example"`, its index; `"weight"`,
    what its loss counts; and `"is_step_end"`. The gradient of the sum of `weight` times loss,
    summed over a step and averaged by `ProcessMean`, is that of the mean over the global batch.

    Processes get batches of different shapes, so each computes its gradient in a program of its
    own, and only the average is one program over all processes. Make it after
    `jax.distributed.initialize`.

    Args:
        source: Examples by index, each a mapping from names to arrays.
        sizes: Size of each example, shape `(num_examples,)`.
        config: What fixes who gets which example; its `num_workers` is filled in.
        cost: Cost of an example by its size; unset for the size.
        num_workers: Processes that read ahead; with 0 it is done by threads.

    Raises:
        ValueError: If a value is bad or values do not fit together.
    """

    def __init__(
        self,
        source: Source,
        sizes: ArrayLike,
        config: BalanceConfig,
        *,
        cost: ExampleCost | None = None,
        num_workers: int = 0,
    ) -> None:
        self._source, self._num_workers = source, num_workers
        rank, num_processes = jax.process_index(), jax.process_count()
        self._run = PlannedRun(sizes, config, rank=rank, num_processes=num_processes, cost=cost)

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one if none is."""
        return self._run.cursor.epoch

    def __iter__(self) -> Iterator[Record]:
        if jax.process_count() > 1:
            from jax.experimental.multihost_utils import process_allgather

            self._run.check_digests(process_allgather)
        planned = self._run.rest_of_epoch()
        records = MapDataset.source(MicroBatches(self._source, planned)).to_iter_dataset()
        if self._num_workers:
            _parse_no_flags()
            records = records.mp_prefetch(MultiprocessingOptions(num_workers=self._num_workers))
        yield from self._run.count(planned, records)

    def get_state(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps; plain values, equal on all processes."""
        return self._run.state_dict()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of processes.

        Holds from the next iteration on.

        Raises:
            StateMismatchError: If the state is of other examples or another config.
        """
        self._run.load_state_dict(state)


def _parse_no_flags() -> None:
    """Let Grain start workers in a program that is not run by absl."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


class ProcessMean:
    """Averages arrays over processes, in one program: what each has, on its first device.

    Examples:
        ```python
        mean_of = ProcessMean()
        gradients = mean_of(gradients)  # a tree of arrays, equal on all processes afterwards
        ```
    """

    def __init__(self) -> None:
        firsts: dict[int, Any] = {}
        for device in jax.devices():
            firsts.setdefault(device.process_index, device)
        mesh = jax.sharding.Mesh(np.array([firsts[i] for i in sorted(firsts)]), "process")
        self._rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("process"))
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._device = firsts[jax.process_index()]
        self._num_processes = len(firsts)
        self._mean = jax.jit(
            lambda tree: jax.tree.map(lambda rows: rows.mean(axis=0), tree), out_shardings=whole
        )

    def __call__(self, tree: Any) -> Any:
        """Return a tree like `tree`, of means."""
        means = self._mean(jax.tree.map(self._as_row, tree))
        return jax.tree.map(lambda mean: mean.addressable_data(0), means)

    def _as_row(self, array: Any) -> Any:
        row = jax.device_put(array, self._device)[None]
        shape = (self._num_processes, *row.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._rows, [row])
