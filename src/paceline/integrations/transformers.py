"""Balanced batches in the Hugging Face Trainer: its token means, its accumulation, its resume."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike

from paceline.balance import BalanceConfig, Cursor
from paceline.errors import MissingExtraError
from paceline.integrations._exact_steps import check_place, require_micro_batches
from paceline.torch.balance import BalancedBatchSampler, DataLoader, example_sizes

try:
    from transformers import TrainerCallback, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise MissingExtraError(
        "paceline.integrations.transformers needs Transformers; install it with: "
        "pip install 'paceline[transformers]'"
    ) from None

# A mixin: what it refines is the user's own class of trainer, of which types know nothing here.
Base: Any = object

OF_THE_BATCH = ("loss_weight", "is_step_end")
IGNORED_LABEL = -100


class BalancedTraining(Base):
    """Makes ranks of a `Trainer` finish each step together, with plain training's gradients.

    Put it before `Trainer`, or a class made of it: `class TextTrainer(BalancedTraining, Trainer)`.

    Sizes come from the column `args.length_column_name` of the training dataset if it has one,
    else they are the lengths of each example's `"input_ids"`. The global batch is what the
    arguments say: `per_device_train_batch_size` times ranks times `gradient_accumulation_steps`;
    so `per_device_train_batch_size` is a mean.

    Losses that the Trainer divides by the target tokens of the whole step (`num_items_in_batch`)
    are exact means over tokens. Any other loss must be the mean over the examples of its batch,
    or over their `loss_terms`, and gets the batch's weight.

    Checkpoints are the Trainer's. What is left of an epoch is found by its own skipping, because
    a plan is a pure function; a checkpoint of other data, settings or plans is refused.

    Args:
        *args: As for the base class.
        balance: What fixes who gets which example; unset for what the arguments say, with free
            counts and padded batches. Its `num_microbatches` may be left out.
        sizes: Size of each example; unset as above.
        loss_terms: Terms of each example in a loss that is not over `num_items_in_batch`; see
            `BalancedBatchSampler`.
        **kwargs: As for the base class.

    Raises:
        ValueError: If an argument would give other results than plain training.
    """

    def __init__(
        self,
        *args: Any,
        balance: BalanceConfig | None = None,
        sizes: ArrayLike | None = None,
        loss_terms: ArrayLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._balance, self._sizes, self._loss_terms = balance, sizes, loss_terms
        _check_arguments(self.args)
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise ValueError(
                "BalancedTraining shares examples between all ranks, and tensor, context or "
                "sequence parallel ranks need the same ones; use data-parallel ranks alone"
            )
        self.add_callback(SamePlan())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of balanced batches, each with its weight.

        Dataset and collate function are those of the Trainer, with unused columns removed.
        """
        plain = super().get_train_dataloader()
        args = self.args
        if self._sizes is None:
            self._sizes = _sizes_of(self.train_dataset, args.length_column_name)
        config = _config_of(self._balance, args)
        sampler = BalancedBatchSampler(self._sizes, config, loss_terms=self._loss_terms)
        check_place(
            sampler,
            rank=args.process_index,
            num_replicas=args.world_size,
            framework="the Trainer",
            way_out="start the script with torchrun or accelerate launch",
        )
        require_micro_batches(
            sampler, lambda: args.gradient_accumulation_steps, "gradient_accumulation_steps"
        )
        return DataLoader(
            plain.dataset,
            batch_sampler=sampler,
            with_info=True,
            num_workers=plain.num_workers,
            collate_fn=plain.collate_fn,
            pin_memory=plain.pin_memory,
            worker_init_fn=plain.worker_init_fn,
            multiprocessing_context=plain.multiprocessing_context,
            prefetch_factor=plain.prefetch_factor,
            persistent_workers=plain.persistent_workers,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step and their target tokens; repeats have none."""
        if self.model_accepts_loss_kwargs or self.compute_loss_func is not None:
            epoch_iterator = map(_without_counted_repeats, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the Trainer's loss, weighted unless it is over the tokens of the whole step."""
        weight = inputs.get("loss_weight")
        inputs = {name: inputs[name] for name in inputs if name not in OF_THE_BATCH}
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if weight is None or num_items_in_batch is not None:
            return found
        factor = weight * self._num_divided_by()
        return (found[0] * factor, found[1]) if return_outputs else found * factor

    def _num_divided_by(self) -> int:
        """Return what the Trainer divides a loss by that knows no `num_items_in_batch`."""
        is_scaled = self.loss_is_scaled_for_ga
        if is_scaled is None:
            is_scaled = self.compute_loss_func is not None
        return 1 if is_scaled else int(self.current_gradient_accumulation_steps)


class SamePlan(TrainerCallback, ExportableState):
    """Saves in the Trainer's checkpoints which plan they belong to, and refuses others.

    `BalancedTrainer` adds it.
    """

    def __init__(self) -> None:
        self._sampler: BalancedBatchSampler | None = None
        self._steps_per_epoch = 0
        self._trainer_state = TrainerState()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        train_dataloader: DataLoader[Any],
        **kwargs: Any,
    ) -> None:
        """Compare the checkpoint that the run goes on from, if any, with what is planned here.

        Raises:
            ValueError: If the rest of its epoch could not be found by skipping.
            StateMismatchError: If data or settings are others.
        """
        self._sampler, self._trainer_state = train_dataloader.balanced, state
        self._steps_per_epoch = len(self._sampler) // args.gradient_accumulation_steps
        saved = state.stateful_callbacks.setdefault(type(self).__name__, {})
        if state.global_step:
            self._check_same_plan(saved.get("attributes", {}).get("position"))

    def _check_same_plan(self, position: dict[str, Any] | None) -> None:
        assert self._sampler is not None, "the run has begun"
        if position is None:
            if self._trainer_state.global_step % self._steps_per_epoch:
                raise ValueError(
                    "the checkpoint was saved inside an epoch of other batches, without "
                    "BalancedTraining; resume from the end of an epoch"
                )
            return
        cursor = self._sampler.planner.load_state_dict(position)
        if cursor.earlier and self._sampler.planner.config.window > 1:
            raise ValueError(
                f"inside an epoch, {len(cursor.workers)} ranks can only go on from "
                f"{len(cursor.earlier[-1].workers)} with window=1, which keeps the global "
                "batches; resume on as many ranks, or from the end of an epoch"
            )

    def state(self) -> dict[str, Any]:
        """Return where the run stands, and in which plan."""
        if self._sampler is None:
            return {}
        epoch, num_steps = divmod(self._trainer_state.global_step, self._steps_per_epoch)
        cursor = Cursor(workers=self._sampler.workers, epoch=epoch, num_steps=num_steps)
        position = self._sampler.planner.state_dict(cursor)
        return {"args": {}, "attributes": {"position": position}}


def _check_arguments(args: TrainingArguments) -> None:
    """Raise a `ValueError` if ranks would count otherwise than in plain training."""
    if args.n_gpu > 1:
        raise ValueError(
            f"one process must have one device, got {args.n_gpu}; start the script with torchrun"
        )
    if args.train_sampling_strategy != "random":
        raise ValueError(
            "BalancedTraining decides who gets which example, got train_sampling_strategy="
            f"{args.train_sampling_strategy!r}; leave it out"
        )
    if args.world_size > 1 and not args.average_tokens_across_devices:
        raise ValueError(
            "ranks hold different numbers of tokens, and average_tokens_across_devices=False "
            "averages their means; leave it out"
        )
    if args.auto_find_batch_size:
        raise ValueError(
            "auto_find_batch_size changes the global batch during a run; set "
            "per_device_train_batch_size, or limits in a BalanceConfig"
        )


def _config_of(balance: BalanceConfig | None, args: TrainingArguments) -> BalanceConfig:
    """Return what is configured, or what the arguments say."""
    num_micro = args.gradient_accumulation_steps
    if balance is not None:
        is_set = balance.num_microbatches is not None
        return balance if is_set else replace(balance, num_microbatches=num_micro)
    return BalanceConfig(
        batch_size=args.per_device_train_batch_size * args.world_size * num_micro,
        counts="free",
        padded=True,
        num_microbatches=num_micro,
        tail="drop" if args.dataloader_drop_last else "zero-weight",
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


def _sizes_of(dataset: Any, column: str) -> ArrayLike:
    """Return the lengths that the dataset tells, or else those of its examples."""
    if column in (getattr(dataset, "column_names", None) or ()):
        return example_sizes(dataset, column)
    return example_sizes(dataset, lambda example: len(example["input_ids"]))


def _without_counted_repeats(batch: Any) -> Any:
    """Return a batch that adds no target tokens if its examples are repeats."""
    if batch["loss_weight"]:
        return batch
    names = [name for name in ("labels", "shift_labels") if name in batch]
    return {**batch, **{name: torch.full_like(batch[name], IGNORED_LABEL) for name in names}}
