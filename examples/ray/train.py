"""Ragged text with Ray Train: a worker may crash, and another number of workers may go on.

    python -m examples.ray.train [--plain] [--workers 2] [--crash-after 13] [--out FOLDER]

`--plain` is the same job without Paceline's batches, for comparison. Checkpoints are in ray-run/,
every 10 steps and after each epoch; the same command goes on from there, with any `--workers`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import ray.train
import torch
from examples.ragged_text import (
    GLOBAL_BATCH,
    WIDTH,
    ByteModel,
    Paragraphs,
    add_flags,
    collate,
    report,
)
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_data_loader, prepare_model

import paceline
from paceline.balance import BalanceConfig

STEPS_PER_SAVE = 10


def balanced_loader(paragraphs: Paragraphs) -> paceline.DataLoader[Any]:
    """Return this worker's batches; Ray has made the process group, so ranks are known."""
    config = BalanceConfig(batch_size=GLOBAL_BATCH, counts="free", padded=True, num_microbatches=1)
    cost = paceline.QuadraticCost(6.0 * WIDTH, 1.0)
    batches = paceline.BalancedBatchSampler(paragraphs.sizes, config, cost=cost)
    return paceline.DataLoader(
        paragraphs, batch_sampler=batches, collate_fn=collate, with_info=True
    )


def plain_loader(paragraphs: Paragraphs) -> Any:
    """Return what Ray makes of a plain loader."""
    per_rank = GLOBAL_BATCH // ray.train.get_context().get_world_size()
    plain = torch.utils.data.DataLoader(
        paragraphs, batch_size=per_rank, shuffle=True, collate_fn=collate
    )
    return prepare_data_loader(plain)


def train(options: dict[str, Any]) -> None:
    """Train on one worker; Ray calls it on all, and again after a failure."""
    torch.set_num_threads(1)
    way, paragraphs = ("balanced", "plain")[options["plain"]], Paragraphs(options["examples"])
    loader = plain_loader(paragraphs) if options["plain"] else balanced_loader(paragraphs)
    bare = ByteModel()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    model = prepare_model(bare)
    place = {} if options["plain"] else {"data": loader}
    folder = Path(options["out"], way)
    with (
        paceline.Checkpoint(folder, model=model, optimizer=optimizer, **place) as checkpoint,
        paceline.watch(model, optimizer) as run,
    ):
        num_before = step = checkpoint.resume()
        for epoch in range(step // len(loader), options["epochs"]):
            if not options["plain"]:
                loader.set_epoch(epoch)
            for batch in loader:
                loss = model(batch["input_ids"], batch["lengths"])["loss"]
                (loss * batch.get("loss_weight", 1.0)).backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                crash_once(options["crash_after"], step, folder)
                if step % STEPS_PER_SAVE == 0 and not options["plain"]:
                    checkpoint.save(step)
            checkpoint.save(step)
            ray.train.report({"loss": loss.item(), "step": step})
        checkpoint.flush()
    report(way, run, None if num_before else sum(paragraphs.sizes) * options["epochs"])


def crash_once(after: int | None, step: int, folder: Path) -> None:
    """End the last worker as a failing machine does, in the first life of the run."""
    context, mark = ray.train.get_context(), folder / "crashed"
    is_last = context.get_world_rank() == context.get_world_size() - 1
    if step == after and is_last and not mark.exists():
        mark.touch()
        os._exit(1)


def main() -> None:
    """Start the workers."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without Paceline's batches")
    flags.add_argument("--workers", type=int, default=2)
    flags.add_argument("--max-failures", type=int, default=1, help="starts again so often")
    flags.add_argument("--crash-after", type=int, help="steps, to see it go on")
    add_flags(flags)
    options = vars(flags.parse_args())
    options["out"] = str((options["out"] or Path("ray-run")).resolve())
    trainer = TorchTrainer(
        train,
        train_loop_config=options,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=options["workers"]),
        run_config=RunConfig(
            storage_path=options["out"],
            failure_config=FailureConfig(max_failures=options["max_failures"]),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
