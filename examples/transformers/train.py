"""Ragged text with the Hugging Face Trainer on two ranks.

    torchrun --nproc-per-node=2 -m examples.transformers.train [--way balanced] [--resume]

`--way` is `balanced`, or for comparison what the Trainer has itself: `random` or
`batch_rebalance`. Checkpoints are the Trainer's, in transformers-run/.
"""

import argparse
from contextlib import ExitStack
from typing import Any

import torch
from examples.ragged_text import GLOBAL_BATCH, ByteModel, Paragraphs, collate, report
from transformers import Trainer, TrainerCallback, TrainingArguments

import paceline
from paceline.integrations.transformers import BalancedTraining


class BalancedTrainer(BalancedTraining, Trainer):
    """The Trainer, with balanced batches."""


class Watching(TrainerCallback):
    """Reports at the end how long ranks waited for each other."""

    def __init__(self, trainer: Trainer, way: str, num_bytes: int) -> None:
        self._trainer, self._way, self._num_bytes = trainer, way, num_bytes
        self._watched = ExitStack()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Watch the model that the Trainer wrapped, and the optimizer inside its wrapper."""
        block = paceline.watch(self._trainer.model_wrapped, self._trainer.optimizer.optimizer)
        self._run = self._watched.enter_context(block)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Report, on all ranks."""
        self._watched.close()
        report(self._way, self._run, self._num_bytes)


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    ways = ("balanced", "random", "batch_rebalance")
    flags.add_argument("--way", choices=ways, default="balanced")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    flags.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    options = flags.parse_args()
    torch.set_num_threads(1)
    is_balanced, paragraphs = options.way == "balanced", Paragraphs(options.examples)
    args = TrainingArguments(
        output_dir=f"transformers-run/{options.way}",
        use_cpu=True,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        per_device_train_batch_size=GLOBAL_BATCH // 2,
        num_train_epochs=options.epochs,
        learning_rate=1e-3,
        train_sampling_strategy="random" if is_balanced else options.way,
        save_steps=20,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = (BalancedTrainer if is_balanced else Trainer)(
        model=ByteModel(), args=args, train_dataset=paragraphs, data_collator=collate
    )
    trainer.add_callback(Watching(trainer, options.way, sum(paragraphs.sizes) * options.epochs))
    trainer.train(resume_from_checkpoint=options.resume)


if __name__ == "__main__":
    main()
