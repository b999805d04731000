"""Keep what each way did as a run folder, so that every command that reads one reads the demo."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from torch.nn.parallel import DistributedDataParallel

from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._data import Share
from paceline.demo._result import LABELS
from paceline.run import RunFolder, Steps
from paceline.timeline import Timeline
from paceline.torch.run import Counted, hardware, steps_of, versions

SAMPLERS = {"plain": "DistributedSampler", "tuned": "length-grouped batches"}


def counted(shares: Sequence[Share], waited_s: float) -> Counted:
    """Count what one step was given, after the loop waited `waited_s` seconds for it."""
    batches = [share.batch for share in shares]
    return Counted(
        waited_s=waited_s,
        num_microbatches=len(batches),
        num_examples=sum(len(batch.lengths) for batch in batches),
        num_elements=sum(batch.text.numel() for batch in batches),
        num_padding=sum(batch.num_padded for batch in batches),
    )


class RunRecord:
    """The steps of one way on this rank, over all its turns."""

    def __init__(self) -> None:
        self._turns: list[Steps] = []
        self._elapsed_s = 0.0

    def add(self, own: Timeline, rows: list[Counted], makespan_s: float) -> None:
        """Add one turn; what other ways did between two turns is left out of the clock.

        Args:
            own: Spans of this rank.
            rows: What was counted, one for each step.
            makespan_s: Of the turn over all ranks, so that their clocks stay together.
        """
        steps = steps_of(own, rows, 0)
        shift_s = self._elapsed_s - steps.begin_s[0]
        self._turns.append(
            steps._replace(begin_s=steps.begin_s + shift_s, arrival_s=steps.arrival_s + shift_s)
        )
        self._elapsed_s += makespan_s

    def write(self, path: Path, rank: int, model: DistributedDataParallel, num_ranks: int) -> None:
        """Write this rank's steps to the folder `path`, and on rank 0 what the run was."""
        folder, name = RunFolder(path), path.name
        folder.clear(rank)
        folder.write_steps(rank, 0, Steps(*map(np.concatenate, zip(*self._turns, strict=True))))
        folder.write_facts(rank, _facts(model, name))
        if rank == 0:
            folder.write_info(
                {
                    "state": "ended",
                    "exit_code": 0,
                    "command": ["paceline", "demo"],
                    "script": LABELS[name],
                    "started": datetime.now(UTC).isoformat(timespec="seconds"),
                    "num_ranks": num_ranks,
                    "versions": versions(),
                    "hardware": hardware(),
                }
            )


def _facts(model: DistributedDataParallel, name: str) -> dict[str, object]:
    return {
        "parallel": type(model).__name__,
        "gradient_bytes": sum(one.numel() * one.element_size() for one in model.parameters()),
        "bucket_cap_mb": model.bucket_bytes_cap / 2**20,
        "device": "cpu",
        "dataset": "functions of Python's standard library",
        "sampler": SAMPLERS.get(name, "planned micro-batches"),
        "num_workers": 0,
        "batch_size": EXAMPLES_PER_RANK,
    }
