"""What frameworks need that count micro-batches themselves and divide losses by their number."""

from collections.abc import Callable, Mapping
from typing import Any

from paceline.torch.balance import BalancedBatchSampler, BatchPass, DataLoader


def checked_sampler(loader: DataLoader[Any]) -> BalancedBatchSampler:
    """Return the sampler of a loader whose batches carry their weights.

    Raises:
        ValueError: If `loader` is something else.
    """
    if not isinstance(loader, DataLoader) or not loader.with_info:
        found = "one without" if isinstance(loader, DataLoader) else f"a {type(loader).__name__}"
        raise ValueError(
            "the loader must be a paceline.DataLoader with with_info=True, because frameworks "
            f"fetch batches ahead of their losses; got {found}"
        )
    return loader.balanced


def check_place(
    sampler: BalancedBatchSampler, *, rank: int, num_replicas: int, framework: str, way_out: str
) -> None:
    """Raise a `ValueError` unless the sampler is of the rank that the framework takes this for."""
    if (sampler.rank, sampler.num_replicas) != (rank, num_replicas):
        raise ValueError(
            f"{framework} takes this process for rank {rank} of {num_replicas}, and the sampler "
            f"was made for rank {sampler.rank} of {sampler.num_replicas}; {way_out}"
        )


def require_micro_batches(
    sampler: BalancedBatchSampler, wanted: Callable[[], int], setting: str
) -> None:
    """Refuse steps of another number of micro-batches than the framework accumulates.

    Asked at once of the config, and of the plan of each epoch before its first batch.

    Args:
        sampler: What plans the steps.
        wanted: Returns how many micro-batches the framework takes for one step.
        setting: What the framework calls that number.

    Raises:
        ValueError: If the config says otherwise.
    """
    _check_number(sampler.planner.config.microbatches, wanted(), setting)

    def check(run: BatchPass) -> None:
        counts = run.plan.num_microbatches
        odd = counts[counts != wanted()]
        if odd.size:
            _check_number(int(odd[0]), wanted(), setting)

    sampler.on_begin(check)


def _check_number(found: int | str, wanted: int, setting: str) -> None:
    if found != wanted:
        raise ValueError(
            f"each step must have {setting} ({wanted}) micro-batches on every rank, got {found!r}; "
            f"set num_microbatches={wanted} in the BalanceConfig, and no limits that need more"
        )


def scaled(batch: Any, factor: float) -> Any:
    """Return a batch that carries its weight, with that weight times `factor`.

    Examples:
        >>> scaled({"x": 0, "loss_weight": 1.5, "is_step_end": True}, 2)
        {'x': 0, 'loss_weight': 3.0, 'is_step_end': True}
    """
    if isinstance(batch, Mapping):
        return {**batch, "loss_weight": batch["loss_weight"] * factor}
    inner, info = batch
    return inner, info._replace(loss_weight=info.loss_weight * factor)
