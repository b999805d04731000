"""Claim: our checkpoints slow the steps around them less than half as much as `async_save` does.

One process that computes in one thread, an MLP with AdamW; ways take turns. Each saves once in
20 steps; what that adds is held against 20 steps without, timed before and after. The steps do
not wait for the end of the write; the next way begins when all is on disk. Peers:

- `torch_save`: blocking, then `fsync`, as ours and `async_save` do.
- `async_save`: `torch.distributed.checkpoint.async_save` as it comes, with a thread.
- `async_save_stager`: the same with a `DefaultStager` that keeps its copies between saves.
- `async_save_process`: the same in a process of its own, staged in shared memory.
"""

import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from torch import distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

from paceline.torch import AsyncCheckpoint

NUM_STEPS, SAVE_AT, BATCH = 20, 4, 64
PEERS = ("async_save", "async_save_stager", "async_save_process")
Save = Callable[[int, dict[str, Any]], Callable[[], object]]


class Job:
    """A model in training."""

    def __init__(self, width: int, num_layers: int) -> None:
        torch.manual_seed(0)
        layers = [
            part
            for _ in range(num_layers)
            for part in (torch.nn.Linear(width, width), torch.nn.ReLU())
        ]
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.inputs = torch.randn(BATCH, width)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def step(self) -> None:
        """Train one step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()

    def steps_s(self, save: Callable[[], None] | None = None) -> float:
        """Train; return the seconds that the steps took."""
        begin_s = time.perf_counter()
        for step in range(NUM_STEPS):
            self.step()
            if step == SAVE_AT and save is not None:
                save()
        return time.perf_counter() - begin_s


def blocking(folder: Path, number: int, state: dict[str, Any]) -> Callable[[], object]:
    with (folder / f"{number}.pt").open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    return lambda: None


def peer(folder: Path, number: int, state: dict[str, Any], **settings: Any) -> Callable[[], object]:
    made = async_save(state, checkpoint_id=folder / str(number), **settings)
    upload = made if hasattr(made, "result") else made.upload_completion
    return upload.result


def stager(*, is_shared: bool) -> DefaultStager:
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=is_shared,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )


def run(way: Save, job: Job, number: int) -> dict[str, float]:
    """Save once in 20 steps; return what that added to them, and how long the call took."""
    wait: list[Callable[[], object]] = []
    before_s = job.steps_s()
    blocked_s: list[float] = []

    def save() -> None:
        begin_s = time.perf_counter()
        wait.append(way(number, job.state()))
        blocked_s.append(time.perf_counter() - begin_s)

    with_save_s = job.steps_s(save)
    wait[0]()  # On disk, before anything else is timed.
    after_s = job.steps_s()
    plain_s = (before_s + after_s) / 2
    return {
        "added_s": with_save_s - plain_s,
        "blocked_s": blocked_s[0],
        "plain_s": plain_s,
    }


def measured(folder: Path, job: Job, num_rounds: int) -> dict[str, list[dict[str, float]]]:
    names = ("paceline", "torch_save", *PEERS)
    folders = {name: folder / name for name in names}
    for one in folders.values():
        one.mkdir()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with AsyncCheckpoint(folders["paceline"], job.optimizer) as checkpoint:
        ways: dict[str, Save] = {
            "paceline": lambda number, state: checkpoint.save(number, state).wait,
            "torch_save": partial(blocking, folders["torch_save"]),
            "async_save": partial(peer, folders["async_save"]),
            "async_save_stager": partial(
                peer, folders["async_save_stager"], async_stager=stager(is_shared=False)
            ),
            "async_save_process": partial(
                peer,
                folders["async_save_process"],
                async_stager=stager(is_shared=True),
                async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            ),
        }
        for number in range(num_rounds + 1):  # The first warms up.
            for name in random.Random(number).sample(names, len(names)):
                found[name].append(run(ways[name], job, number))
                if name != "paceline":
                    for old in folders[name].iterdir():
                        shutil.rmtree(old) if old.is_dir() else old.unlink()
    return {name: rounds[1:] for name, rounds in found.items()}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--rounds", type=int, default=9)
    flags.add_argument("--width", type=int, default=1024)
    flags.add_argument("--layers", type=int, default=8)
    options = flags.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    job = Job(options.width, options.layers)
    job.step()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "cpu:gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        found = measured(Path(folder), job, options.rounds)
        dist.destroy_process_group()
    added = {name: np.array([one["added_s"] for one in rounds]) for name, rounds in found.items()}
    best = min(PEERS, key=lambda name: float(np.median(added[name])))
    state_bytes = 3 * sum(p.numel() * p.element_size() for p in job.model.parameters())
    ways = {
        name: {key: spread([one[key] for one in rounds]) for key in rounds[0]}
        for name, rounds in found.items()
    }
    over = {
        "added_over_best_async_save": float(np.median(added["paceline"]) / np.median(added[best])),
        "added_over_async_save": float(
            np.median(added["paceline"]) / np.median(added["async_save"])
        ),
    }
    result = {"times": "measured", "state_bytes": state_bytes, "best_async_save": best}
    finish("async_checkpoint", options, {**result, **over, "ways": ways}, "torch")


if __name__ == "__main__":
    main()
