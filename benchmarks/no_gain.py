"""Claim: where balancing has nothing to gain, a loop with it is not slower by more than 1 %.

Whole loops as users write them: a `DistributedSampler` with torch's loader, and a
`BalancedBatchSampler` with ours, which carries weights and step ends. Epochs of both take turns,
each with a replica and an optimizer of its own; the loader is part of what is timed. Rates are
tokens per second, since padded batches of another shuffle hold other tokens.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import paceline
from paceline.balance import BalanceConfig
from paceline.demo import ByteTransformer, example_losses, padded_batch
from paceline.testing import run_ranks
from paceline.torch import measure_cost

NUM_EXAMPLES = 1024
SMALL = {"dim": 64, "num_layers": 2, "num_heads": 4}
TINY = {"dim": 16, "num_layers": 1, "num_heads": 1}
# Ranks, examples per rank and step, the model, and the shortest and longest example.
CASES: dict[str, tuple[int, int, dict[str, int], tuple[int, int]]] = {
    "equal lengths": (2, 16, SMALL, (128, 128)),
    "short batches": (2, 2, SMALL, (60, 68)),
    "one rank, equal lengths": (1, 16, SMALL, (128, 128)),
    "one rank, ragged": (1, 16, SMALL, (8, 256)),
    "tiny model": (2, 8, TINY, (28, 36)),
    "tiny model, one rank": (1, 8, TINY, (28, 36)),
}


class Loop:
    """One way to train, with a replica of its own."""

    def __init__(self, model: dict[str, int], epoch: Callable[["Loop", int], int]) -> None:
        torch.manual_seed(0)
        self.model = DistributedDataParallel(ByteTransformer(**model))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self._epoch = epoch

    def tokens_per_s(self, epoch: int) -> float:
        """Train an epoch; return this job's rate."""
        dist.barrier()
        begin_s = time.perf_counter()
        tokens = torch.tensor(self._epoch(self, epoch))
        dist.barrier()
        took_s = time.perf_counter() - begin_s
        dist.all_reduce(tokens)
        return float(tokens) / took_s

    def step(self) -> None:
        """Update, and forget the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def loss_of(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """Return the mean over examples of each example's mean."""
    return example_losses(model(batch.text), batch.text, batch.lengths).mean()


def default_epochs(data: Any, per_rank: int) -> Callable[[Loop, int], int]:
    sampler: DistributedSampler[int] = DistributedSampler(data)
    loader: DataLoader[Any] = DataLoader(
        data, batch_size=per_rank, sampler=sampler, collate_fn=padded_batch
    )

    def train(loop: Loop, epoch: int) -> int:
        sampler.set_epoch(epoch)
        tokens = 0
        for batch in loader:
            loss_of(loop.model, batch).backward()
            loop.step()
            tokens += int(batch.lengths.sum())
        return tokens

    return train


def balanced_epochs(data: Any, per_rank: int, model: dict[str, int]) -> Callable[[Loop, int], int]:
    sizes = [len(one) for one in data]
    cost = measure_cost(ByteTransformer(**model), loss_of, data, sizes, collate_fn=padded_batch)
    config = BalanceConfig(
        batch_size=per_rank * dist.get_world_size(),
        counts="free",
        padded=True,
        microbatch_cost=cost.microbatch,
    )
    batches = paceline.BalancedBatchSampler(sizes, config, cost=cost.example)
    loader: paceline.DataLoader[Any] = paceline.DataLoader(
        data,
        batch_sampler=batches,
        collate_fn=padded_batch,
        with_info=True,
    )

    def train(loop: Loop, epoch: int) -> int:
        batches.set_epoch(epoch)
        tokens = 0
        for batch, info in loader:
            with nullcontext() if info.is_step_end else loop.model.no_sync():
                (loss_of(loop.model, batch) * info.loss_weight).backward()
            if info.is_step_end:
                loop.step()
            tokens += int(batch.lengths.sum())
        return tokens

    return train


def train(rank: int, case: str, num_rounds: int, output: Path) -> None:
    """Run both loops in turn; rank 0 writes their rates and what balancing says of itself."""
    _, per_rank, model, (shortest, longest) = CASES[case]
    generator = np.random.default_rng(0)
    sizes = generator.integers(shortest, longest + 1, NUM_EXAMPLES)
    data = [torch.from_numpy(generator.integers(0, 256, size)) for size in sizes.tolist()]
    loops = {
        "default": Loop(model, default_epochs(data, per_rank)),
        "balanced": Loop(model, balanced_epochs(data, per_rank, model)),
    }
    rounds = []
    for epoch in range(num_rounds + 1):  # The first warms up.
        order = random.Random(epoch).sample(sorted(loops), len(loops))
        rates = {name: loops[name].tokens_per_s(epoch) for name in order}
        rounds.append([rates["default"], rates["balanced"]])
    if rank == 0:
        output.write_text(json.dumps(rounds[1:]), encoding="utf-8")


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--rounds", type=int, default=15)
    flags.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options = flags.parse_args()
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rounds.json"
        for case in options.cases:
            run_ranks(train, CASES[case][0], case, options.rounds, output, timeout_s=900.0)
            default, balanced = np.array(json.loads(output.read_text(encoding="utf-8"))).T
            cases[case] = {
                "ranks": CASES[case][0],
                "examples_per_rank": CASES[case][1],
                "time_over_default": spread(default / balanced),
            }
    finish("no_gain", options, {"times": "measured", "cases": cases}, "torch")


if __name__ == "__main__":
    main()
