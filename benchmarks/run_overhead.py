"""Claim: `paceline run` costs under 1 % of a step that takes 50 ms or more.

What every step costs is the median difference of plain and recorded steps, in turns. What comes
once in a second or in ten, the line in a terminal and the writing, no median shows: it is timed by
itself and divided by the steps of that time.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _record import finish, parser, spread
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from paceline.run import RunFolder
from paceline.torch.run._live import TERMINAL_S, LiveLine
from paceline.torch.run._recorder import WRITE_EVERY_S, Recorder

VOCABULARY, LENGTH, BATCH = 256, 128, 8
STEP_S = 0.05
NUM_DRAINS = 50


class Twin(NamedTuple):
    """A model, its optimizer and batches that never end."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[torch.Tensor]


def twin(dim: int, num_steps: int) -> Twin:
    torch.manual_seed(0)
    layers = [
        torch.nn.Embedding(VOCABULARY, dim),
        torch.nn.Linear(dim, dim),
        torch.nn.Linear(dim, 1),
    ]
    model = torch.nn.Sequential(*layers)
    ids = torch.randint(1, VOCABULARY, (BATCH, LENGTH))
    ids[:, LENGTH // 2 :] = 0
    dataset: Any = [ids] * (num_steps + 20)
    batches: DataLoader[Any] = DataLoader(dataset, batch_size=None)
    return Twin(model, torch.optim.SGD(model.parameters(), lr=0.01), iter(batches))


def timed_step(which: Twin) -> float:
    start = time.perf_counter()
    which.optimizer.zero_grad()
    which.model(next(which.batches)).square().mean().backward()
    which.optimizer.step()
    return time.perf_counter() - start


class Terminal(io.StringIO):
    """Keeps what is shown; the line is rewritten once in a second."""

    def isatty(self) -> bool:
        """Return True, as a terminal does."""
        return True


def paired_steps(
    recorder: Recorder, twins: tuple[Twin, Twin], num_pairs: int
) -> NDArray[np.float64]:
    """Time plain and recorded steps in turn, the first of each pair alternating."""
    recorder.install()
    for _ in range(10):  # The recorded one steps first, so that it is found.
        timed_step(twins[1])
    fetches: Any = recorder._fetches
    seconds = np.zeros((2, num_pairs))
    for pair in range(num_pairs):
        for place in ((0, 1), (1, 0))[pair % 2]:
            fetches.install() if place else fetches.remove()
            seconds[place, pair] = timed_step(twins[place])
    return seconds


def drain_seconds(recorder: Recorder, which: Twin, num_rounds: int) -> NDArray[np.float64]:
    """Time what is done with the steps of a second, and the line that is shown."""
    seconds = np.zeros(num_rounds)
    for place in range(num_rounds):
        for _ in range(round(TERMINAL_S / STEP_S)):
            timed_step(which)
        begin_s = time.perf_counter()
        recorder._drain(begin_s)
        seconds[place] = time.perf_counter() - begin_s
    return seconds


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--pairs", type=int, default=2000)
    options = flags.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        recorder = Recorder(RunFolder(Path(place)), 0, LiveLine(Terminal()))
        twins = twin(8, options.pairs), twin(8, options.pairs + 20 * NUM_DRAINS)
        plain, recorded = paired_steps(recorder, twins, options.pairs)
        drain_s = float(np.median(drain_seconds(recorder, twins[1], NUM_DRAINS)))
        begin_s = time.perf_counter()
        recorder.finish()
        finish_s = time.perf_counter() - begin_s
    hooks_s = float(np.median(recorded - plain))
    # Everything that is still held is written at the end; in a run, every ten seconds.
    write_s = finish_s * STEP_S / WRITE_EVERY_S
    result = {
        "plain_step_s": spread(plain),
        "hooks_per_step_s": hooks_s,
        "drain_and_line_s": drain_s,
        "write_s": finish_s,
        "share_of_a_50_ms_step": (hooks_s + write_s + drain_s * STEP_S / TERMINAL_S) / STEP_S,
    }
    finish("run_overhead", options, result, "torch")


if __name__ == "__main__":
    main()
