"""Ragged text with torchdata's stateful loader and Hugging Face datasets, on two ranks.

    torchrun --nproc-per-node=2 -m examples.torchdata.train [--plain] [--epochs 2] [--resume]

`--plain` is the same job without Paceline, for comparison. The state is saved in torchdata-run/
after each epoch; a run goes on from there on any number of ranks.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from examples.ragged_text import GLOBAL_BATCH, WIDTH, ByteModel, Paragraphs, collate, report
from torch import distributed, nn
from torchdata.stateful_dataloader import StatefulDataLoader

import paceline
from paceline.balance import BalanceConfig
from paceline.integrations.torchdata import BalancedLoader
from paceline.torch import example_sizes


def texts(num_examples: int) -> Any:
    """Return the paragraphs with their lengths, as a dataset of Hugging Face."""
    items = Paragraphs(num_examples)
    columns = {
        "input_ids": [items[i]["input_ids"].tolist() for i in range(len(items))],
        "length": items.sizes,
    }
    return Dataset.from_dict(columns).with_format("torch", columns=["input_ids"])


def loader_of(dataset: Any, *, is_plain: bool) -> Any:
    """Return the loader of this rank, and what is told the epochs."""
    if is_plain:
        shares = torch.utils.data.DistributedSampler(dataset)
        per_rank = GLOBAL_BATCH // distributed.get_world_size()
        plain = StatefulDataLoader(
            dataset, batch_size=per_rank, sampler=shares, collate_fn=collate, num_workers=1
        )
        return plain, shares
    config = BalanceConfig(batch_size=GLOBAL_BATCH, counts="free", padded=True, num_microbatches=1)
    cost = paceline.QuadraticCost(6.0 * WIDTH, 1.0)
    sizes = example_sizes(dataset.with_format(None), "length")
    batches = paceline.BalancedBatchSampler(sizes, config, cost=cost)
    return BalancedLoader(dataset, batches, collate, num_workers=1), batches


def main() -> None:
    """Train."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--plain", action="store_true", help="without Paceline")
    flags.add_argument("--epochs", type=int, default=2)
    flags.add_argument("--examples", type=int, default=1200)
    flags.add_argument("--resume", action="store_true", help="go on from torchdata-run/")
    options = flags.parse_args()
    torch.set_num_threads(1)
    way, dataset = ("balanced", "plain")[options.plain], texts(options.examples)
    path = Path("torchdata-run", f"{way}.pt")

    distributed.init_process_group("gloo")
    bare = ByteModel()
    model = nn.parallel.DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
    loader, sampler = loader_of(dataset, is_plain=options.plain)
    begin = 0
    if options.resume:
        state = torch.load(path, weights_only=True)
        begin = state.pop("epochs")
        for part, one in {"model": bare, "optimizer": optimizer, "loader": loader}.items():
            one.load_state_dict(state[part])

    with paceline.watch(model, optimizer) as run:
        for epoch in range(begin, options.epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                loss = model(batch["input_ids"], batch["lengths"])["loss"]
                (loss * batch.get("loss_weight", 1.0)).backward()
                optimizer.step()
                optimizer.zero_grad()
            if distributed.get_rank() == 0:
                path.parent.mkdir(exist_ok=True)
                state = {"model": bare.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "loader": loader.state_dict(), "epochs": epoch + 1}, path)
    report(way, run, sum(dataset.with_format(None)["length"]) * (options.epochs - begin))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
