"""What is wrong with a run, by flags: data, and causes that a verdict should find.

An item of the data is a whole batch of one length, as many pipelines make them in advance. So
lengths can differ between ranks without any padding, and padding can be there without lengths that
differ.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # not in its stubs
from torch.utils.data import Dataset

CAUSES = ("imbalance", "padding", "loader", "slow-rank", "communication", "small-batch")
VOCABULARY, NUM_CLASSES, NUM_BATCHES = 256, 8, 4096
SMALL_LENGTHS = (4, 13)
SLOW_LOADER_S, SLOW_FORWARDS = 0.05, 1.5
# A wire of 12 MB/s, emulated: the result of an all-reduce is held back.
WIRE_S_PER_BYTE = 1 / 12e6


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", action="append", default=[], choices=CAUSES)
    return parser.parse_args()


class Batches(Dataset[dict[str, torch.Tensor]]):
    """Batches of token ids; id 0 is padding."""

    def __init__(self, plants: list[str], seed: int, length: int, batch_size: int) -> None:
        self._shape = batch_size, length
        self._plants, self._seed = plants, seed

    def __len__(self) -> int:
        return NUM_BATCHES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if "loader" in self._plants:
            time.sleep(SLOW_LOADER_S)
        random = np.random.default_rng([self._seed, index])
        num, length = self._shape
        if "small-batch" in self._plants:
            num, length = 1, int(random.integers(*SMALL_LENGTHS))
        if "imbalance" in self._plants:
            length = int(length * np.exp(random.uniform(-1.8, 0.8)))
        ids = random.integers(1, VOCABULARY, (num, max(length, 2)))
        kept = np.full(num, length)
        if "padding" in self._plants:
            kept[1:] = (length * random.uniform(0.2, 0.6, num - 1)).astype(int)
        ids[np.arange(ids.shape[1]) >= kept[:, None]] = 0
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((ids > 0).astype(np.int64)),
            "labels": torch.from_numpy(random.integers(NUM_CLASSES, size=num)),
        }


def slow_down(model: torch.nn.Module, plants: list[str]) -> None:
    """Let the last rank compute something more after each forward pass, for longer than that."""
    if "slow-rank" not in plants or dist.get_rank() < dist.get_world_size() - 1:
        return
    matrix, begun_s = torch.randn(128, 128), [0.0]

    def begin(*_: Any) -> None:
        begun_s[0] = time.thread_time()

    def work(*_: Any) -> None:
        now_s = time.thread_time()
        end_s = now_s + SLOW_FORWARDS * (now_s - begun_s[0])
        while time.thread_time() < end_s:
            matrix @ matrix

    model.register_forward_pre_hook(begin)
    model.register_forward_hook(work)


def slow_wire(ddp: Any, plants: list[str]) -> None:
    """Hold the averaged gradients back for as long as a slow wire would have taken."""
    if "communication" not in plants:
        return

    def hook(_state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        takes_s = bucket.buffer().nbytes * WIRE_S_PER_BYTE
        sent = dist.all_reduce(bucket.buffer(), async_op=True).get_future()

        def arrive(future: torch.futures.Future[list[torch.Tensor]]) -> torch.Tensor:
            time.sleep(takes_s)  # From the moment that the last rank is there.
            return future.value()[0] / dist.get_world_size()

        held: torch.futures.Future[torch.Tensor] = sent.then(arrive)
        return held

    ddp.register_comm_hook(None, hook)
