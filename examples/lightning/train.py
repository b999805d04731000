"""Ragged text with Lightning on two ranks, which it starts itself.

    python -m examples.lightning.train [--plain] [--epochs 2] [--out FOLDER] [--ranks 2]

`--plain` is the same job without Paceline, for comparison. Checkpoints are Lightning's, one per
epoch in lightning-run/; the same command goes on from the newest, also on another number of
ranks, and also if torchrun starts them.
"""

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from examples.ragged_text import (
    GLOBAL_BATCH,
    WIDTH,
    ByteModel,
    Paragraphs,
    add_flags,
    collate,
    newest_whole,
    report,
)
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.lightning import BalancedLoader


class Text(pl.LightningDataModule):
    """The data, balanced or as Lightning would share them out."""

    def __init__(self, num_examples: int, *, is_plain: bool) -> None:
        super().__init__()
        self.paragraphs, self.is_plain = Paragraphs(num_examples), is_plain

    def train_dataloader(self) -> Any:
        """Return the loader; here the ranks are known, under any launcher."""
        if self.is_plain:
            per_rank = GLOBAL_BATCH // self.trainer.world_size
            return torch.utils.data.DataLoader(
                self.paragraphs, batch_size=per_rank, shuffle=True, collate_fn=collate
            )
        config = BalanceConfig(
            batch_size=GLOBAL_BATCH, counts="free", padded=True, num_microbatches=1
        )
        batches = paceline.BalancedBatchSampler(
            self.paragraphs.sizes, config, cost=paceline.QuadraticCost(6.0 * WIDTH, 1.0)
        )
        loader = paceline.DataLoader(
            self.paragraphs, batch_sampler=batches, collate_fn=collate, with_info=True
        )
        return BalancedLoader(self.trainer, loader)


class Predictor(pl.LightningModule):
    """The model, and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ByteModel()

    def training_step(self, batch: dict[str, Any], _: int) -> Any:
        """Return the mean loss, times what the batch counts."""
        loss = self.model(batch["input_ids"], batch["lengths"])["loss"]
        return loss * batch.get("loss_weight", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the usual optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Watching(Callback):
    """Reports at the end how long ranks waited for each other."""

    def __init__(self, way: str, num_bytes: int | None) -> None:
        self._way, self._num_bytes = way, num_bytes
        self._watched = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, _: Any) -> None:
        """Watch the model that Lightning wrapped."""
        block = paceline.watch(trainer.strategy.model, trainer.optimizers[0])
        self._run = self._watched.enter_context(block)

    def on_train_end(self, trainer: pl.Trainer, _: Any) -> None:
        """Report, on all ranks."""
        self._watched.close()
        report(self._way, self._run, self._num_bytes)


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without Paceline")
    flags.add_argument("--ranks", type=int, default=2, help="without torchrun")
    add_flags(flags)
    options = flags.parse_args()
    torch.set_num_threads(1)
    way, text = ("balanced", "plain")[options.plain], Text(options.examples, is_plain=options.plain)
    folder = (options.out or Path("lightning-run")) / way
    saved = newest_whole(folder, options.resume)
    trainer = pl.Trainer(
        accelerator="cpu",
        # torchrun says how many there are; its number of machines may change.
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", options.ranks)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_epochs=options.epochs,
        callbacks=[
            ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1),
            Watching(way, None if saved else sum(text.paragraphs.sizes) * options.epochs),
        ],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(Predictor(), datamodule=text, ckpt_path=saved)


if __name__ == "__main__":
    main()
