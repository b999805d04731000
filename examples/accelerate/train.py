"""Ragged text with Accelerate on two ranks.

    torchrun --nproc-per-node=2 -m examples.accelerate.train [--plain] [--epochs 2] [--out FOLDER]

`--plain` is the same job without Paceline, for comparison. The state is saved in accelerate-run/
after each epoch, and every 10 steps; the same command goes on from there, on any number of ranks.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from examples.ragged_text import (
    GLOBAL_BATCH,
    WIDTH,
    ByteModel,
    Paragraphs,
    add_flags,
    collate,
    mark_whole,
    newest_whole,
    report,
)

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.accelerate import BalancedLoader

STEPS_PER_SAVE = 10


def loader_of(accelerator: Accelerator, paragraphs: Paragraphs, *, is_plain: bool) -> Any:
    """Return what the loop iterates: balanced, or what `prepare()` makes of a plain loader."""
    if is_plain:
        per_rank = GLOBAL_BATCH // accelerator.num_processes
        plain = torch.utils.data.DataLoader(
            paragraphs, batch_size=per_rank, shuffle=True, collate_fn=collate
        )
        return accelerator.prepare(plain)
    config = BalanceConfig(batch_size=GLOBAL_BATCH, counts="free", padded=True, num_microbatches=1)
    cost = paceline.QuadraticCost(6.0 * WIDTH, 1.0)
    batches = paceline.BalancedBatchSampler(paragraphs.sizes, config, cost=cost)
    loader = paceline.DataLoader(
        paragraphs, batch_sampler=batches, collate_fn=collate, with_info=True
    )
    balanced = BalancedLoader(accelerator, loader)
    accelerator.register_for_checkpointing(balanced)
    return balanced


class Progress:
    """Steps made, saved beside the rest."""

    def __init__(self) -> None:
        self.num_steps = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take it back."""
        self.num_steps = state["num_steps"]


def rest_of(accelerator: Accelerator, loader: Any, num_done: int) -> Any:
    """Return what is left of the epoch: balanced loaders know, plain ones are told."""
    is_told = isinstance(loader, BalancedLoader) or not num_done
    return loader if is_told else accelerator.skip_first_batches(loader, num_done)


def save(accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Save the state in a folder of its own: one that is cut short leaves the older ones whole."""
    checkpoint = folder / f"step-{progress.num_steps}"
    accelerator.save_state(str(checkpoint))
    mark_whole(checkpoint)


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without Paceline")
    add_flags(flags)
    options = flags.parse_args()
    torch.set_num_threads(1)
    way, paragraphs = ("balanced", "plain")[options.plain], Paragraphs(options.examples)
    folder = (options.out or Path("accelerate-run")) / way

    accelerator = Accelerator(cpu=True)
    bare = ByteModel()
    adamw = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(bare, adamw)
    loader = loader_of(accelerator, paragraphs, is_plain=options.plain)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    saved = newest_whole(folder, options.resume)
    if saved is not None:
        accelerator.load_state(str(saved))
    first_epoch, num_done = divmod(progress.num_steps, len(loader))
    with paceline.watch(model, adamw) as run:
        for epoch in range(first_epoch, options.epochs):
            loader.set_epoch(epoch)
            for batch in rest_of(accelerator, loader, num_done if epoch == first_epoch else 0):
                loss = model(batch["input_ids"], batch["lengths"])["loss"]
                accelerator.backward(loss * batch.get("loss_weight", 1.0))
                optimizer.step()
                optimizer.zero_grad()
                progress.num_steps += 1
                if progress.num_steps % STEPS_PER_SAVE == 0:
                    save(accelerator, folder, progress)
            save(accelerator, folder, progress)
    report(way, run, None if saved else sum(paragraphs.sizes) * options.epochs)
    accelerator.end_training()


if __name__ == "__main__":
    main()
