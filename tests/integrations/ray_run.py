"""Train with Ray Train, which starts its workers itself; see `contract.py`."""

from contextlib import nullcontext
from pathlib import Path
from shutil import copytree
from typing import Any

import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from tests.integrations.data import (
    NUM_EPOCHS,
    SIZES,
    STEPS_PER_EPOCH,
    Record,
    Reverser,
    Sequences,
    arguments,
    config_of,
    optimizer_of,
    padded,
    runs_of,
)

import paceline


def train(folder: Path, num_micro: int, record: Record) -> Reverser:
    """Go on from the newest checkpoint of the folder, and save each step."""
    batches = paceline.BalancedBatchSampler(SIZES, config_of(num_micro))
    # Workers fetch ahead, and what they fetched does not count as delivered.
    loader = paceline.DataLoader(
        Sequences(),
        batch_sampler=batches,
        collate_fn=padded,
        with_info=True,
        num_workers=2 * (num_micro == 2),
    )
    inner = Reverser()
    optimizer = optimizer_of(inner)
    model = prepare_model(inner)
    options: dict[str, Any] = {"model": model, "optimizer": optimizer, "data": loader}
    with paceline.Checkpoint(folder, keep=NUM_EPOCHS * STEPS_PER_EPOCH, **options) as checkpoint:
        step = checkpoint.resume()
        for epoch in range(step // STEPS_PER_EPOCH, NUM_EPOCHS):
            loader.set_epoch(epoch)
            for batch in loader:
                is_end = bool(batch["is_step_end"])
                with nullcontext() if is_end or model is inner else model.no_sync():
                    loss = model(batch["x"], batch["is_token"]) * batch["loss_weight"]
                    loss.backward()
                record.add(batch)
                if is_end:
                    optimizer.step()
                    optimizer.zero_grad()
                    step += 1
                    checkpoint.save(step)
        checkpoint.flush()
    return inner


def run_all(options: dict[str, Any]) -> None:
    """Make all runs of the contract on one worker."""
    torch.set_num_threads(1)
    folder, num_ranks = Path(options["folder"]), options["num_ranks"]
    record, rank = Record(), ray.train.get_context().get_world_rank()
    for num_micro, point in runs_of(num_ranks):
        own = folder / f"{num_micro}"
        if point is not None:
            name = f"step_{point:08d}"
            begun, own = own / name, folder / f"{num_micro} from {point} on {num_ranks}"
            if rank == 0:
                copytree(begun, own / name)
            torch.distributed.barrier()
        model = train(own, num_micro, record)
        record.end_run(f"{num_micro} from {point}", model)
    record.write(folder, num_ranks, rank)


def main() -> None:
    folder, num_ranks = arguments()
    TorchTrainer(
        run_all,
        train_loop_config={"folder": str(folder), "num_ranks": num_ranks},
        torch_config=TorchConfig(backend="gloo"),
        # A third of a core each: the machine may have fewer cores than workers.
        scaling_config=ScalingConfig(num_workers=num_ranks, resources_per_worker={"CPU": 0.3}),
        run_config=RunConfig(storage_path=str(folder / "ray")),
    ).fit()


if __name__ == "__main__":
    main()
