"""What every framework trains in the contract: 203 ragged examples, and one plain process."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import paceline
from paceline.balance import BalanceConfig
from paceline.torch import Replica

SIZES = np.random.default_rng(7).lognormal(2.2, 0.8, 203).astype(np.int64) + 1
# The last step of an epoch holds 3 examples, fewer than ranks have micro-batches: some get a repeat
# that counts nothing.
BATCH_SIZE, NUM_EPOCHS, STEPS_PER_EPOCH = 40, 2, 6
LEARNING_RATE = 0.05
# Steps after which runs go on: inside an epoch, at its end, inside the next.
POINTS = (2, 6, 9)
Batch = dict[str, Any]


def config_of(num_microbatches: int) -> BalanceConfig:
    return BalanceConfig(
        batch_size=BATCH_SIZE,
        counts="free",
        padded=True,
        num_microbatches=num_microbatches,
        seed=3,
    )


class Sequences(Dataset[Batch]):
    """Example `i` is a sequence of `SIZES[i]` vectors."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(int(size), 3) for size in SIZES]
        self._items = [torch.randn(shape, generator=generator).double() for shape in shapes]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Batch:
        return {"x": self._items[index], "index": index}


def padded(items: list[Batch]) -> Batch:
    lengths = torch.tensor([len(item["x"]) for item in items])
    x = nn.utils.rnn.pad_sequence([item["x"] for item in items], batch_first=True)
    return {
        "x": x,
        "is_token": torch.arange(x.shape[1]) < lengths[:, None],
        "index": torch.tensor([item["index"] for item in items]),
    }


class Reverser(nn.Module):
    """Predicts each vector from itself, reversed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def token_losses(self, x: Tensor, is_token: Tensor | int = 1) -> Tensor:
        return (self.layers(x) - x.flip(-1)).square().sum(-1) * is_token

    def forward(self, x: Tensor, is_token: Tensor | None = None) -> Tensor:
        """Return the mean over examples of each example's mean loss; without them, all losses."""
        if is_token is None:
            return self.token_losses(x)
        return (self.token_losses(x, is_token).sum(1) / is_token.sum(1)).mean()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    # Not Adam, which forgives gradients that are all twice too large.
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)


def flat(model: nn.Module) -> list[float]:
    return torch.cat([one.detach().flatten() for one in model.parameters()]).tolist()


def global_batches() -> list[list[int]]:
    """Return the examples of each step of all epochs, as one process plans them."""
    alone = Replica(rank=0, num_replicas=1)
    sampler = paceline.BalancedBatchSampler(SIZES, config_of(1), process_group=alone)
    found = []
    for epoch in range(NUM_EPOCHS):
        sampler.set_epoch(epoch)
        found += [sorted(set(batch)) for batch in sampler]
    return found


def plain_parameters(*, over_tokens: bool = False) -> list[float]:
    """Train on each global batch at once, in one process, without any framework."""
    model, data = Reverser(), Sequences()
    optimizer = optimizer_of(model)
    for examples in global_batches():
        batch = padded([data[example] for example in examples])
        x, is_token = batch["x"], batch["is_token"]
        total = model.token_losses(x, is_token).sum() / is_token.sum()
        (total if over_tokens else model(x, is_token)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


class Record:
    """What one rank received, and where its parameters ended, written for the test."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.batches: list[Any] = []

    def add(self, batch: Batch) -> None:
        """Note one micro-batch: its examples, unless they are repeats that count nothing."""
        examples = batch["index"].tolist() if batch["loss_weight"] else []
        self.batches.append([examples, bool(batch["is_step_end"])])

    def end_run(self, name: str, model: nn.Module) -> None:
        self.runs[name] = {"batches": self.batches, "parameters": flat(model)}
        self.batches = []

    def write(self, folder: Path, num_ranks: int, rank: int) -> None:
        path = folder / f"{num_ranks}-ranks-{rank}.json"
        path.write_text(json.dumps(self.runs), encoding="utf-8")


def arguments() -> tuple[Path, int]:
    """Return the folder of checkpoints and records, and the number of ranks."""
    return Path(sys.argv[1]), int(sys.argv[2])


def runs_of(num_ranks: int) -> list[tuple[int, int | None]]:
    """Return micro-batches per step, and where to go on from: two ranks begin, others resume."""
    begins: list[tuple[int, int | None]] = [(1, None), (2, None)] if num_ranks == 2 else []
    return begins + [(num_micro, point) for num_micro in (1, 2) for point in POINTS]
