"""Balanced batches for frameworks that insist on a `DistributedSampler`."""

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import DistributedSampler

from paceline.balance import BalanceConfig, EpochPlan, Limits, plan_epoch, regime_of
from paceline.cost import ExampleCost, Worker, example_costs
from paceline.torch.balance._epoch_choice import EpochChoice
from paceline.torch.balance._plan_check import PlanCheck, digest_of_column, facts_of
from paceline.torch.balance._short_form import checked_cost, checked_sizes, config_of
from paceline.torch.ranks import Facts, Group, process_group_of, replica_of

# A plan wins if its steps take less than this share of the plain shuffle's time.
LEAST_WIN = 0.98


class BalancedSampler(DistributedSampler[int]):
    """A `DistributedSampler` whose ranks finish each step together.

    Lightning, the Hugging Face Trainer and others leave a `DistributedSampler` alone and
    call its `set_epoch`. Give their loader `batch_size // num_replicas` examples per
    rank: the k-th such chunk of every rank together is global batch k, split evenly by
    cost. All ranks hold equally many examples, as many as torch's own sampler gives
    them, so plain data-parallel training needs no weights.

    Args:
        sizes: Size of each example, shape `(num_examples,)`.
        config: What fixes who gets which example: equal counts, one micro-batch per step
            without limits, and a tail of `"pad"`, or `"drop"` for `drop_last`. Its
            `num_workers` is filled in. Or, for short, `batch_size`, `shuffle`, `seed` and
            `drop_last`.
        batch_size: Examples per step over all ranks; `num_replicas` must divide it.
        num_replicas: Data-parallel ranks, as in torch's sampler. By default from the
            environment (`WORLD_SIZE`), then the default process group, else one.
        rank: This rank, likewise (`RANK`).
        shuffle: Whether each epoch has an order of its own; by default it has.
        seed: Of the shuffle; equal on all ranks.
        drop_last: Whether the last examples that do not go round are left out; else up
            to `num_replicas - 1` examples are repeated, and count twice.
        cost: Cost of an example by its size; by default the size.
        workers: Speed and overhead of each rank; unset for equal ones.
        process_group: Process group, or one axis of a device mesh, instead of `num_replicas`
            and `rank`.
        check_plan: Whether ranks compare what they plan before the first batch; see
            `BalancedBatchSampler`.

    A forgotten `set_epoch` is made up for by going to the next epoch, with a warning. Equal counts
    cannot shorten the steps of a model that pads, unless a window gives them room: where a config
    with `padded=True` does not win, sums are balanced instead, with a warning.

    Raises:
        ValueError: If a value is bad or values do not fit together.

    Examples:
        >>> sizes = [4, 1, 2, 3, 6, 5]
        >>> ranks = [
        ...     BalancedSampler(sizes, batch_size=4, num_replicas=2, rank=rank, shuffle=False)
        ...     for rank in (0, 1)
        ... ]
        >>> [list(sampler) for sampler in ranks]
        [[0, 1, 4], [2, 3, 5]]
    """

    def __init__(
        self,
        sizes: ArrayLike,
        config: BalanceConfig | None = None,
        *,
        batch_size: int | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool | None = None,
        seed: int | None = None,
        drop_last: bool | None = None,
        cost: ExampleCost | None = None,
        workers: tuple[Worker, ...] | None = None,
        process_group: Group | None = None,
        check_plan: bool = True,
    ) -> None:
        place = replica_of(process_group, num_replicas=num_replicas, rank=rank)
        short = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed, "drop_last": drop_last}
        self.config = config_of(config, place.num_replicas, "pad", **short)
        _check_plain(self.config)
        size = checked_sizes(sizes)
        self.costs = example_costs(checked_cost(cost), size)
        super().__init__(
            range(len(size)),  # type: ignore[arg-type]  # only its length is used
            place.num_replicas,
            place.rank,
            shuffle=self.config.shuffle,
            seed=self.config.seed,
            drop_last=self.config.tail == "drop",
        )
        if len(size) < self.num_replicas:
            raise ValueError(
                f"{len(size)} examples are fewer than {self.num_replicas} replicas; use fewer"
            )
        self._workers = workers
        self._is_padded = self.config.padded and _padding_wins(self.costs, self.config, workers)
        self._planned: tuple[int, NDArray[np.int64]] | None = None
        self._choice = EpochChoice(warns=self.config.shuffle)
        self._process_group = process_group
        self._check = PlanCheck(type(self).__name__, is_wanted=check_plan)

    @property
    def facts(self) -> Facts:
        """What must be equal on all ranks."""
        return facts_of(len(self.costs), digest_of_column(self.costs), self.config)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        super().set_epoch(epoch)
        self._choice.is_made = True

    def __iter__(self) -> Iterator[int]:
        # All of it at the first example: until then, another epoch may be set.
        self.epoch = self._choice.next(self.epoch)
        group = process_group_of(self._process_group, self.num_replicas)
        self._check.run(lambda: {**self.facts, "epoch": str(self.epoch)}, group, self.num_replicas)
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._own_examples()
        self._choice.begin(self.epoch)
        yield from self._planned[1].tolist()

    def _own_examples(self) -> NDArray[np.int64]:
        parts = []
        left = np.arange(len(self.costs))
        if len(left) >= self.config.batch_size:
            plan = self._plan(self.config.batch_size, None)
            parts.append(_examples_of(plan, self.rank))
            left = np.delete(left, plan.examples)
        per_rank, over = divmod(len(left), self.num_replicas)
        num_last = self.num_replicas * (per_rank + (over > 0 and not self.drop_last))
        if num_last:
            order = np.random.default_rng([self.config.seed, self.epoch, 2]).permutation(left)
            plan = self._plan(num_last, np.resize(order if self.shuffle else left, num_last))
            parts.append(_examples_of(plan, self.rank))
        return np.concatenate(parts)

    def _plan(self, batch_size: int, remaining: NDArray[np.int64] | None) -> EpochPlan:
        config = replace(self.config, batch_size=batch_size, tail="drop", padded=self._is_padded)
        return plan_epoch(
            self.costs, config, epoch=self.epoch, workers=self._workers, remaining=remaining
        )


def _examples_of(plan: EpochPlan, worker: int) -> NDArray[np.int64]:
    return np.concatenate([plan.step_examples(step, worker) for step in range(plan.num_steps)])


def _padding_wins(
    costs: NDArray[np.float64], config: BalanceConfig, workers: tuple[Worker, ...] | None
) -> bool:
    """Whether a plan for padded batches of equal counts beats the plain shuffle; warns if not."""
    regime = regime_of(costs, config, workers=workers)
    if regime.kind != "padding" or regime.planned < LEAST_WIN * regime.plain:
        return True
    warnings.warn(
        f"BalancedSampler balances sums here, as if nothing were padded. {regime} Use "
        "BalancedBatchSampler with counts='free', whose batches carry their weights.",
        stacklevel=3,
    )
    return False


def _check_plain(config: BalanceConfig) -> None:
    """Raise a `ValueError` if ranks would not hold equally many examples, each once a step."""
    plain: dict[str, tuple[object, ...]] = {
        "counts": ("equal",),
        "num_microbatches": (1, None),
        "limits": (Limits(),),
        "longest_first": (False,),
        "tail": ("pad", "drop"),
    }
    for name, allowed in plain.items():
        value = getattr(config, name)
        if value not in allowed:
            raise ValueError(
                f"BalancedSampler needs {name}={allowed[0]!r}, got {value!r}; set it, or use "
                "BalancedBatchSampler"
            )
