"""Measure what examples and micro-batches cost, on the device at hand."""

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, default_collate

from paceline._files import read_json, shown, write_json
from paceline.cost import QuadraticCost, checked_column, fit_nonnegative
from paceline.torch.measure._unchanged import unchanged
from paceline.torch.model import Clock, clock_of
from paceline.torch.ranks import Group, device_of, from_rank_0, process_group_of

# Examples of a micro-batch, and the quantile of the sizes that they are taken from.
SHAPES = ((1, 0.0), (1, 0.5), (1, 0.95), (4, 0.05), (4, 0.5), (4, 0.9), (8, 0.25), (8, 0.75))
NUM_WARMUP, NUM_REPEATS = 1, 3
KEYS = ("linear_s", "quadratic_s", "microbatch_s")
# What rank 0 sends instead of costs, which are not negative.
ABSENT, DAMAGED = -1.0, -2.0
Loss = Callable[[torch.nn.Module, Any], torch.Tensor]


class MeasuredCost(NamedTuple):
    """What a padded micro-batch costs, in seconds: of its examples, and by itself.

    A micro-batch of `count` examples whose longest has the size `n` takes
    `count * example(n) + microbatch` seconds.
    """

    example: QuadraticCost
    microbatch: float


def measure_cost(
    model: torch.nn.Module,
    loss: Loss,
    dataset: Dataset[Any] | Sequence[Any],
    sizes: ArrayLike,
    *,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    cache: str | Path | None = None,
    process_group: Group | None = None,
) -> MeasuredCost:
    """Time forward and backward passes of small micro-batches, and fit what they cost.

    Takes eight micro-batches of 1 to 8 examples of different sizes, the median of three passes
    each, and fits a fixed, a linear and a quadratic part by least squares of relative errors, none
    negative. All ranks measure at once, as they will train at once; the mean over ranks counts, so
    it is equal on all of them. Gradients, buffers and random state are put back.

    Args:
        model: What the training loop calls; DDP is measured without its all-reduces.
        loss: Called as `loss(model, batch)`; returns a scalar.
        dataset: Map-style, as long as `sizes`.
        sizes: Size of each example, shape `(num_examples,)`; see `example_sizes`.
        collate_fn: Turns a list of examples into a batch, as in a loader.
        cache: JSON file to read the result from, or for rank 0 to write it to when it is not there
            yet. A run that is to be resumed needs it: another measurement is another plan.
        process_group: Ranks that train together, or an axis of a mesh; unset for the default group.

    Returns:
        `(example, microbatch)`: what an example of a size costs, and what each micro-batch costs
        besides, for `BalancedBatchSampler(cost=...)` and `BalanceConfig(microbatch_cost=...)`.

    Raises:
        ValueError: If sizes and dataset differ in length, or the cache holds something else.

    Examples:
        >>> words = [torch.ones(length, 4) for length in (2, 3, 5, 8, 13, 21, 34, 55, 89)]
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> pad = torch.nn.utils.rnn.pad_sequence
        >>> sizes = [len(word) for word in words]
        >>> cost = measure_cost(torch.nn.Linear(4, 4), loss, words, sizes, collate_fn=pad)
        >>> cost.example(np.array([89.0])).item() + cost.microbatch > 0.0
        True
    """
    size = _checked_sizes(sizes, dataset)
    ranks = _Ranks.of(process_group)
    path = Path(cache) if cache is not None and ranks.is_first else None
    found = ranks.from_first(path)
    if found is None:
        bare = model.module if isinstance(model, DistributedDataParallel) else model
        batches = [_batch(dataset, size, shape, collate_fn) for shape in SHAPES]
        found = _fit(ranks.mean(_seconds(bare, loss, batches)), size)
        _keep(path, found)
    linear, quadratic, microbatch = found.tolist()
    return MeasuredCost(QuadraticCost(linear, quadratic), microbatch)


class _Ranks(NamedTuple):
    """Those that measure together; one process alone has no group to talk in."""

    is_parallel: bool
    is_first: bool
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, process_group: Group | None) -> "_Ranks":
        if not (dist.is_available() and dist.is_initialized()):
            return cls(False, True, None)
        group = process_group_of(process_group)
        return cls(True, dist.get_rank(group) == 0, group)

    def from_first(self, path: Path | None) -> NDArray[np.float64] | None:
        """Return what the file of the first rank holds, None if it is not there yet.

        If it holds something else, all ranks raise: none is left waiting.
        """
        if not self.is_parallel:
            return _kept(path)
        own, error = np.full(len(KEYS), ABSENT), None
        try:
            kept = _kept(path)
            own = own if kept is None else kept
        except ValueError as found:
            own, error = np.full(len(KEYS), DAMAGED), found
        shared = from_rank_0(own, self.group)
        if shared[0] == DAMAGED:
            raise error or ValueError("rank 0 cannot use the cache of costs; see what it says")
        return None if shared[0] == ABSENT else shared

    def mean(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean over ranks, equal on all of them."""
        if not self.is_parallel:
            return seconds
        total = torch.from_numpy(seconds).to(device_of(self.group))
        dist.all_reduce(total, group=self.group)
        return total.cpu().numpy() / dist.get_world_size(self.group)


def _checked_sizes(sizes: ArrayLike, dataset: Any) -> NDArray[np.float64]:
    size = checked_column("sizes", sizes)
    if isinstance(dataset, Sized) and len(dataset) != len(size):
        raise ValueError(
            f"sizes must be as long as the dataset ({len(dataset)} examples), got {len(size)}"
        )
    return size


def _chosen(size: NDArray[np.float64], shape: tuple[int, float]) -> NDArray[np.int64]:
    """Return examples of neighbouring sizes, at a quantile of all sizes."""
    count, quantile = shape
    first = round(quantile * (len(size) - 1))
    first = max(min(first, len(size) - count), 0)
    return np.argsort(size, kind="stable")[first : first + count]


def _batch(
    dataset: Any,
    size: NDArray[np.float64],
    shape: tuple[int, float],
    collate_fn: Callable[[list[Any]], Any],
) -> Any:
    return collate_fn([dataset[index] for index in _chosen(size, shape).tolist()])


def _seconds(model: torch.nn.Module, loss: Loss, batches: list[Any]) -> NDArray[np.float64]:
    """Return the median seconds of both passes over each batch."""
    clock = clock_of(model)
    with unchanged(model):
        return np.array([_median_s(model, loss, batch, clock) for batch in batches])


def _median_s(model: torch.nn.Module, loss: Loss, batch: Any, clock: Clock) -> float:
    marks = [clock.mark()]
    for _ in range(NUM_WARMUP + NUM_REPEATS):
        loss(model, batch).backward()
        marks.append(clock.mark())
    model.zero_grad(set_to_none=True)
    return float(np.median(np.diff(clock.seconds(marks))[NUM_WARMUP:]))


def _fit(seconds: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the linear, the quadratic and the fixed part."""
    chosen = [_chosen(size, shape) for shape in SHAPES]
    counts = np.array([len(examples) for examples in chosen], dtype=np.float64)
    longest = np.array([size[examples].max() for examples in chosen])
    # Scaled, or the quadratic part is lost among the others.
    unit = max(float(longest.max()), 1.0)
    features = np.stack([longest / unit, (longest / unit) ** 2]) * counts
    features = np.stack([*features, np.ones_like(counts)], axis=1) / seconds[:, None]
    linear, quadratic, fixed = fit_nonnegative(features, np.ones_like(seconds))
    if not linear + quadratic:  # Nothing but the micro-batch itself could be told from noise.
        linear = fixed / 1e6
    return np.array([linear / unit, quadratic / unit**2, fixed])


def _kept(path: Path | None) -> NDArray[np.float64] | None:
    if path is None or not path.exists():
        return None
    held = read_json(path)
    if not isinstance(held, dict) or set(held) != set(KEYS):
        raise ValueError(f"{path} must hold {', '.join(KEYS)}, got {shown(held)}; delete it")
    return checked_column(str(path), [held[key] for key in KEYS])


def _keep(path: Path | None, found: NDArray[np.float64]) -> None:
    if path is None:
        return
    write_json(path, dict(zip(KEYS, found.tolist(), strict=True)))
