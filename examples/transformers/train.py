"""Ragged text with the Hugging Face Trainer on two ranks.

    torchrun --nproc-per-node=2 -m examples.transformers.train [--way balanced] [--out FOLDER]

`--way` is `balanced`, or for comparison what the Trainer has itself: `random` or
`batch_rebalance`. Checkpoints are the Trainer's, in transformers-run/; the same command goes on
from the newest.
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from examples.ragged_text import (
    GLOBAL_BATCH,
    ByteModel,
    Paragraphs,
    add_flags,
    collate,
    mark_whole,
    newest_whole,
    report,
)
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

import paceline
from paceline.integrations.transformers import BalancedTraining


class BalancedTrainer(BalancedTraining, Trainer):
    """The Trainer, with balanced batches."""


class Watching(TrainerCallback):
    """Says which checkpoints are whole, and at the end how long ranks waited for each other."""

    def __init__(self, trainer: Trainer, way: str, num_bytes: int | None) -> None:
        self._trainer, self._way, self._num_bytes = trainer, way, num_bytes
        self._watched = ExitStack()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Watch the model that the Trainer wrapped, and the optimizer inside its wrapper."""
        block = paceline.watch(self._trainer.model_wrapped, self._trainer.optimizer.optimizer)
        self._run = self._watched.enter_context(block)

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Mark it, on all ranks."""
        mark_whole(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Report, on all ranks."""
        self._watched.close()
        report(self._way, self._run, self._num_bytes)


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    ways = ("balanced", "random", "batch_rebalance")
    flags.add_argument("--way", choices=ways, default="balanced")
    add_flags(flags)
    options = flags.parse_args()
    torch.set_num_threads(1)
    is_balanced, paragraphs = options.way == "balanced", Paragraphs(options.examples)
    folder = (options.out or Path("transformers-run")) / options.way
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        # The global batch stays, so that another number of ranks may go on inside an epoch.
        per_device_train_batch_size=GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", 1)),
        num_train_epochs=options.epochs,
        learning_rate=1e-3,
        train_sampling_strategy="random" if is_balanced else options.way,
        save_steps=10,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = (BalancedTrainer if is_balanced else Trainer)(
        model=ByteModel(), args=args, train_dataset=paragraphs, data_collator=collate
    )
    saved = newest_whole(folder, options.resume)
    num_bytes = None if saved else sum(paragraphs.sizes) * options.epochs
    trainer.add_callback(Watching(trainer, options.way, num_bytes))
    trainer.train(resume_from_checkpoint=saved and str(saved))


if __name__ == "__main__":
    main()
