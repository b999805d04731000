"""Balanced batches in Lightning: its launcher, its accumulation, its checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

from paceline.errors import MissingExtraError
from paceline.integrations._exact_steps import (
    check_place,
    checked_sampler,
    require_micro_batches,
    scaled,
)
from paceline.torch.balance import BalancedBatchSampler, DataLoader

try:
    from lightning.pytorch import Trainer
except ModuleNotFoundError as error:
    if error.name != "lightning":
        raise
    raise MissingExtraError(
        "paceline.integrations.lightning needs Lightning; install it with: "
        "pip install 'paceline[lightning]'"
    ) from None


class BalancedLoader:
    """What `train_dataloader()` returns, of a data module or of a model.

    Each batch carries its weight: `training_step` returns the mean loss over the batch times
    `batch["loss_weight"]`. The weight makes up for Lightning's division by
    `accumulate_grad_batches`, so the gradient of a step is that of the mean over the global
    batch. The place in the data is saved in Lightning's checkpoints, and a run that goes on
    from one, on any number of ranks, gets each example that is left once.

    It is no torch loader: Lightning leaves it as it is, whatever `use_distributed_sampler` says.

    Args:
        trainer: `self.trainer` inside `train_dataloader()`.
        loader: With `with_info=True`, and a sampler that was made inside `train_dataloader()`:
            only there the ranks are known, under any launcher. Its `num_microbatches` must be
            `accumulate_grad_batches`.

    Raises:
        ValueError: If the loader or its sampler do not fit the trainer.

    Examples:
        A data module in short:

        ```python
        def train_dataloader(self):
            batches = paceline.BalancedBatchSampler(self.sizes, batch_size=64, counts="free")
            loader = paceline.DataLoader(
                self.dataset, batch_sampler=batches, collate_fn=collate, with_info=True
            )
            return BalancedLoader(self.trainer, loader)
        ```
    """

    def __init__(self, trainer: Trainer, loader: DataLoader[Any]) -> None:
        self._trainer, self._loader = trainer, loader
        self._sampler = checked_sampler(loader)
        place = trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        way_out = (
            "make it inside train_dataloader(), or pass process_group=Replica(rank=..., "
            "num_replicas=...)"
        )
        check_place(self._sampler, framework="Lightning", way_out=way_out, **place)
        require_micro_batches(self._sampler, self._num_accumulated, "accumulate_grad_batches")
        self._before = loader.cursor

    @property
    def sampler(self) -> BalancedBatchSampler:
        """What Lightning calls `set_epoch` of, before each epoch."""
        return self._sampler

    def _num_accumulated(self) -> int:
        return int(self._trainer.accumulate_grad_batches)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        factor = self._num_accumulated()
        while True:
            self._before = self._loader.cursor
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield scaled(batch, factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the data after the last batch that was trained on.

        Lightning calls it as it saves a checkpoint. One that is saved inside a step, after an
        exception for example, says so.
        """
        done = self._trainer.fit_loop.epoch_loop.batch_progress.current
        is_trained = done.ready == done.processed
        cursor = self._loader.cursor if is_trained else self._before
        return {
            "position": self._sampler.planner.state_dict(cursor),
            "num_unfinished": done.processed % self._num_accumulated(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was saved, also on another number of ranks.

        Raises:
            ValueError: If it was saved inside a step, whose gradients are in no checkpoint.
            StateMismatchError: See `BalancedBatchSampler.load_state_dict`.
        """
        if state["num_unfinished"]:
            raise ValueError(
                f"the checkpoint was saved inside a step, after {state['num_unfinished']} of its "
                f"{self._num_accumulated()} micro-batches, whose gradients are lost; resume from "
                "one that was saved after an optimizer step"
            )
        self._sampler.load_state_dict(state["position"])
