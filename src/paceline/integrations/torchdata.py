"""Balanced batches in torchdata: its stateful loader, with exact weights and its own resume."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from paceline.errors import MissingExtraError
from paceline.torch.balance import BalancedBatchSampler, carry_info

try:
    from torchdata.stateful_dataloader import StatefulDataLoader
except ModuleNotFoundError as error:
    if error.name != "torchdata":
        raise
    raise MissingExtraError(
        "paceline.integrations.torchdata needs torchdata; install it with: "
        "pip install 'paceline[torchdata]'"
    ) from None

ENDED, FINISHED = "paceline_ended", "_iterator_finished"


class BalancedLoader(StatefulDataLoader[Any]):
    """A `StatefulDataLoader` whose batches carry their weights.

    Its `state_dict` counts whole steps of what was delivered, whatever workers fetched ahead. A
    state that was saved inside a step goes on from the step's beginning: gradients that were
    summed up by then belong to no checkpoint. The state of any rank is good for all, also on
    another number of ranks with as many workers each.

    Args:
        dataset: As long as the sampler's sizes; one of Hugging Face `datasets` for example.
        sampler: Of this rank.
        collate_fn: Turns a list of examples into a batch.
        **options: Of `StatefulDataLoader`, such as `num_workers`.

    Raises:
        ValueError: If states would be saved of some batches only: what follows is then found by
            counting batches, which goes wrong inside a step and on another number of ranks.

    Examples:
        ```python
        batches = paceline.BalancedBatchSampler(sizes, batch_size=64, counts="free")
        loader = BalancedLoader(dataset, batches, collate, num_workers=2)
        ```
    """

    def __init__(
        self,
        dataset: Dataset[Any] | Sequence[Any],
        sampler: BalancedBatchSampler,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        **options: Any,
    ) -> None:
        every = options.get("snapshot_every_n_steps", 1)
        if every != 1:
            raise ValueError(
                "snapshot_every_n_steps must be 1, so that no batch is left to be counted, got "
                f"{every}; leave it out"
            )
        sampler.use_step_ends()
        dataset, collate_fn = carry_info(dataset, collate_fn, is_in_order=True)
        super().__init__(dataset, batch_sampler=sampler, collate_fn=collate_fn, **options)
        self._balanced = sampler

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps, and the state of a stateful dataset."""
        state: dict[str, Any] = super().state_dict()
        return {ENDED: self._balanced.state_dict()} if state[FINISHED] else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another run stood; holds from the next iteration on."""
        # With an epoch that has ended torchdata makes two iterators, one after the other, and
        # workers that fetch for the first would make the second go to the epoch after the next.
        if ENDED in state:
            self._balanced.load_state_dict(state[ENDED])
        else:
            super().load_state_dict(state)
