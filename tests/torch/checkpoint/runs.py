"""A small run with dropout, a schedule and ragged data, to be interrupted and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import paceline

SIZES = [1 + number % 7 for number in range(48)]
BATCH_SIZE = 8
STEPS_PER_EPOCH = len(SIZES) // BATCH_SIZE
NUM_STEPS = 2 * STEPS_PER_EPOCH + 3

Wrap = Callable[[nn.Module, torch.optim.Optimizer], nn.Module]


class Run:
    """All objects of a run, made anew; `wrap` makes it data-parallel.

    Attributes:
        losses: Of each step that was made.
        seen: Examples that this rank was given, by epoch.
    """

    def __init__(self, folder: Path, wrap: Wrap | None = None, **settings: Any) -> None:
        torch.manual_seed(1)
        self.bare = nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1)
        )
        self.optimizer = torch.optim.AdamW(self.bare.parameters(), lr=0.05)
        self.model = self.bare if wrap is None else wrap(self.bare, self.optimizer)
        schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [4, 9], gamma=0.5)
        self.schedule = schedule
        sampler = paceline.BalancedBatchSampler(SIZES, batch_size=BATCH_SIZE, seed=3)
        self.loader = paceline.DataLoader(range(len(SIZES)), batch_sampler=sampler)
        self.losses: list[float] = []
        self.seen: dict[int, list[int]] = {}
        self.checkpoint = paceline.Checkpoint(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            data=self.loader,
            schedule=schedule,
            **settings,
        )

    def train(self, begin: int, end: int, save: Callable[[int], bool] = lambda _: False) -> None:
        """Make the steps after `begin` until `end`; `save` tells after which to save."""
        step = begin
        while step < end:
            epoch = step // STEPS_PER_EPOCH
            self.loader.set_epoch(epoch)
            for examples in self.loader:
                self.seen.setdefault(epoch, []).extend(examples.tolist())
                self.step(examples)
                step += 1
                if save(step):
                    self.checkpoint.save(step)
                if step == end:
                    break

    def step(self, examples: torch.Tensor) -> None:
        """Make one step of the optimizer."""
        x = torch.sin(examples[:, None] * torch.arange(1.0, 5.0))
        loss = self.model(x).square().mean() * self.loader.loss_weight
        loss.backward()
        if isinstance(self.model, paceline.ScheduledDataParallel):
            self.model.step()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.schedule.step()
        self.losses.append(loss.item())

    def state(self) -> list[torch.Tensor]:
        """Return copies of the parameters and buffers."""
        if isinstance(self.model, paceline.ScheduledDataParallel):
            self.model.flush()
        return [one.clone() for one in self.bare.state_dict().values()]

    def close(self) -> None:
        """End what runs beside."""
        self.checkpoint.close()
        if isinstance(self.model, paceline.ScheduledDataParallel):
            self.model.close()


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Tell whether all bits are the same."""
    return len(one) == len(other) and all(map(torch.equal, one, other))
