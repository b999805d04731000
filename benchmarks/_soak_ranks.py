"""What the ranks of the soak do: train for long with all main parts, open and close wrappers."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _process import held, peak_rss_bytes
from torch import nn

import paceline
from paceline.balance import BalanceConfig
from paceline.comm import BlockPlan, WireProblem, plan_p3

NUM_EXAMPLES, BATCH_SIZE, DIM = 2048, 16, 8
SIZES = np.random.default_rng(0).lognormal(2.0, 0.7, NUM_EXAMPLES).astype(int) + 1
NUM_SAVES = 50
WRAPPER_STEPS = 12
Batch = tuple[torch.Tensor, torch.Tensor]


class Sequences(torch.utils.data.Dataset[torch.Tensor]):
    """Examples of many lengths."""

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.sin(torch.arange(SIZES[index] * DIM) * (index + 1.0)).reshape(-1, DIM)


def padded(examples: list[torch.Tensor]) -> Batch:
    """Return the padded examples and their lengths."""
    lengths = torch.tensor([len(one) for one in examples])
    return nn.utils.rnn.pad_sequence(examples, batch_first=True), lengths


def tiny() -> nn.Module:
    torch.manual_seed(0)
    hidden = nn.Linear(DIM, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()
    return nn.Sequential(*hidden, nn.Linear(16, 1))


def train(rank: int, folder: str, num_steps: int, settings: dict[str, Any]) -> None:
    """Train with sampler, loader, wrapper, recorder, guard and checkpoint; write what is held."""
    bare = tiny()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4)
    config = BalanceConfig(batch_size=BATCH_SIZE, num_workers=2, padded=True, counts="free", seed=1)
    sampler = paceline.BalancedBatchSampler(SIZES, config)
    loader = paceline.DataLoader(
        Sequences(), batch_sampler=sampler, collate_fn=padded, with_info=True
    )
    with ExitStack() as stack:
        model = stack.enter_context(paceline.ScheduledDataParallel(bare, optimizer, **settings))
        run = stack.enter_context(paceline.watch(model, optimizer))
        stack.enter_context(paceline.torch.guard(model, optimizer, data=loader))
        checkpoint = stack.enter_context(
            paceline.Checkpoint(
                Path(folder, "checkpoints"), model=model, optimizer=optimizer, data=loader
            )
        )
        samples = _steps(model, loader, checkpoint, num_steps)
        model.flush()
        found = {
            "samples": samples,
            "num_recorded_steps": run.num_steps,
            "step_s": run.summary().step_time_s,
            "peak_rss_bytes": peak_rss_bytes(),
            "digest": digest_of(bare),
        }
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def _steps(
    model: paceline.ScheduledDataParallel,
    loader: "paceline.DataLoader[Any]",
    checkpoint: paceline.Checkpoint,
    num_steps: int,
) -> list[dict[str, int]]:
    step, epoch, samples = 0, 0, []
    while step < num_steps:
        loader.set_epoch(epoch)
        for (x, lengths), info in loader:
            with ExitStack() as stack:
                if not info.is_step_end:
                    stack.enter_context(model.no_sync())
                is_token = torch.arange(x.shape[1]) < lengths[:, None]
                losses = model(x)[:, :, 0].square() * is_token
                ((losses.sum(1) / lengths).mean() * info.loss_weight).backward()
            if not info.is_step_end:
                continue
            model.step()
            step += 1
            if step % (num_steps // NUM_SAVES) == 0:
                checkpoint.save(step)
                checkpoint.flush()
                samples.append(held())
            if step == num_steps:
                break
        epoch += 1
    return samples


def digest_of(model: nn.Module) -> str:
    """Return a digest of all parameters."""
    flat = torch.cat([one.detach().flatten() for one in model.parameters()])
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def thirds(problem: WireProblem) -> BlockPlan:
    return plan_p3(problem, slice_bytes=float(problem.num_bytes.sum()) / 3)


def wrappers(rank: int, folder: str, num_wrappers: int) -> None:
    """Open and close wrappers of every kind; write what is held after each."""
    kinds: list[dict[str, Any]] = [
        {"num_trial_steps": 1},
        {"choose": thirds},
        {"sharded": True},
        {"sharded": True, "choose": thirds},
    ]
    samples = []
    for number in range(num_wrappers):
        bare = tiny()
        optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
        settings = {"num_measure_steps": 4, **kinds[number % len(kinds)]}
        with paceline.ScheduledDataParallel(bare, optimizer, **settings) as model:
            _few_steps(rank, model)
        samples.append(held())
    Path(folder, f"{rank}.json").write_text(json.dumps({"samples": samples}), encoding="utf-8")


def _few_steps(rank: int, model: paceline.ScheduledDataParallel) -> None:
    for step in range(WRAPPER_STEPS):
        model(torch.full((4, DIM), 0.1 * rank + step)).square().mean().backward()
        model.step()


SOAKS: dict[str, Callable[..., None]] = {
    "whole": partial(train, settings={}),
    "sharded": partial(train, settings={"sharded": True}),
    "wrappers": wrappers,
}
