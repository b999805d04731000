"""Claim: simulated steps take as long as measured ones, within 10 %, on two and on four ranks.

Three bundled examples train in three ways: as they come, with smaller buckets of
DistributedDataParallel, and paced (planned micro-batches for ragged text, ScheduledDataParallel for
the others). Each round measures the job first: layers, what examples cost, the link, the update,
and how much ranks slow each other where they share cores. Then every way is simulated from that,
and trained, in turn. Nothing of the training enters the simulation. `whatif` is the same for
`paceline whatif RUN --workers 4 --cores N`: from a recorded run of two ranks, against one of four.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _record import finish, parser, spread
from _simulated_examples import (
    EXAMPLES,
    Example,
    Share,
    compute_s,
    dealt_steps,
    gpt2,
    ordering,
    paced_steps,
    ragged_text,
)
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paceline.comm import WireProblem, plan_blocks, plan_ddp_cap
from paceline.cost import Job, Worker
from paceline.plan import Blocks, StepParts, blocks_of, step_graph
from paceline.run import Run
from paceline.testing import run_ranks
from paceline.timeline import simulate
from paceline.torch import (
    MeasuredCost,
    ScheduledDataParallel,
    measure_cost,
    measure_job,
    measure_slowdown,
)

MAKE = {"ragged_text": ragged_text, "gpt2": gpt2, "ordering": ordering}
WAYS, TARGET = ("default", "tuned", "paced"), 0.1
TUNED_MB, NUM_WARM_UPS = 1, 3
# More than a scheduled model measures and tries before it keeps a plan.
NUM_SETTLING = 120
NUM_PASSES, NUM_DRAWN = 25, 500


class Passes(NamedTuple):
    """Passes of all ranks over one batch, each from a barrier to a small all-reduce.

    Attributes:
        seconds: Of each pass, shape `(num_ranks, num_passes)`; what disturbed both ranks of one
            is in one column.
        meeting_s: Mean seconds of the all-reduce after the last rank had come.
    """

    seconds: NDArray[np.float64]
    meeting_s: float

    @property
    def varied(self) -> NDArray[np.float64]:
        """Seconds over their median."""
        return self.seconds / np.median(self.seconds)

    @classmethod
    def measured(cls, model: nn.Module, batch: Any) -> "Passes":
        """Measure; the ranks of one machine share a clock."""
        marks, small = np.empty((NUM_PASSES, 3)), torch.zeros(1024)
        for row in marks:
            dist.barrier()
            row[0] = time.perf_counter()
            model(batch).backward()
            row[1] = time.perf_counter()
            dist.all_reduce(small)
            row[2] = time.perf_counter()
        every = [
            torch.empty(marks.shape, dtype=torch.float64) for _ in range(dist.get_world_size())
        ]
        dist.all_gather(every, torch.from_numpy(marks))
        begin_s, arrival_s, end_s = np.moveaxis(torch.stack(every).numpy()[:, 1:], 2, 0)
        return cls(arrival_s - begin_s, float((end_s - arrival_s.max(axis=0)).mean()))


class Trainee:
    """One way, with a replica of its own."""

    def __init__(self, example: Example, way: str, ranks: list[list[list[Share]]]) -> None:
        self.example, self.way, self.ranks = example, way, ranks
        bare = deepcopy(example.model)
        self.optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-3)
        self.is_scheduled = way == "paced" and not example.is_ragged
        if self.is_scheduled:
            self.model: Any = ScheduledDataParallel(bare, self.optimizer)
        else:
            cap_mb = TUNED_MB if way == "tuned" else None
            self.model = DistributedDataParallel(bare, bucket_cap_mb=cap_mb)
        mine = ranks[dist.get_rank()]
        self.steps = [[(example.batch(ids), weight) for ids, weight in step] for step in mine]
        self.train(NUM_SETTLING if self.is_scheduled else NUM_WARM_UPS)

    def train(self, num_steps: int) -> float:
        """Return the seconds per step."""
        dist.barrier()
        begin_s = time.perf_counter()
        for number in range(num_steps):
            self._step(self.steps[number % len(self.steps)])
        dist.barrier()
        return (time.perf_counter() - begin_s) / num_steps

    def _step(self, shares: list[tuple[Any, float]]) -> None:
        for place, (batch, weight) in enumerate(shares, 1):
            with nullcontext() if place == len(shares) else self.model.no_sync():
                (weight * self.example.loss(self.model, batch)).backward()
        if self.is_scheduled:
            self.model.step()
        else:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def simulated_s(self, job: Job, cost: MeasuredCost | None, passes: Passes) -> float:
        """Return the simulated seconds per step of the same steps."""
        problem = WireProblem.from_job(job)
        # What a scheduled model keeps is only known from itself: it may fall back.
        overlaps = self.is_scheduled and "the next forward pass" in self.model.explain()
        if overlaps:
            blocks: Blocks = blocks_of(problem, plan_blocks(problem, in_halves=False))
        else:
            cap_mb = TUNED_MB if self.way == "tuned" else 25
            blocks = blocks_of(problem, plan_ddp_cap(problem, cap_mb))
        steps = np.resize(np.arange(len(self.steps)), NUM_DRAWN)
        drawn = np.random.default_rng(0).integers(passes.seconds.shape[1], size=NUM_DRAWN)
        passes_s = passes.seconds[:, drawn].T
        if cost is not None:
            passes_s = compute_s(self.example, cost, self.ranks)[steps] * passes.varied[:, drawn].T
        parts = StepParts.of_blocks(job, blocks, waits_for_all=not overlaps)
        return simulate(step_graph(job, passes_s, parts)).makespan_s / NUM_DRAWN


def measured_job(example: Example) -> tuple[Job, MeasuredCost | None, Passes]:
    """Return what is measured before a round."""
    model = deepcopy(example.model)
    typical = int(np.argsort(example.sizes)[len(example.sizes) // 2])
    batch = example.batch([typical] * example.per_rank)
    called = _Called(model, example)
    job = measure_job(called, (batch,), loss=lambda loss: loss)
    slowdown = measure_slowdown(called, (batch,), loss=lambda loss: loss)
    passes = Passes.measured(called, batch)
    assert job.link is not None
    job = replace(
        job,
        slowdown=slowdown,
        workers=(Worker(overhead_s=_update_s(model)),) * len(slowdown),
        link=replace(job.link, alpha_s=passes.meeting_s),
    )
    if not example.is_ragged:
        return job, None, passes
    cost = measure_cost(
        model, example.loss, range(len(example.sizes)), example.sizes, collate_fn=example.batch
    )
    return job, cost, passes


class _Called(nn.Module):
    """The model and its loss as one call."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.inner, self._loss = model, example.loss

    def forward(self, batch: Any) -> torch.Tensor:
        return self._loss(self.inner, batch)


def _update_s(model: nn.Module) -> float:
    """Return the median seconds of an update while all ranks make one, equal on all of them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    took_s = []
    for _ in range(8):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        dist.barrier()
        begin_s = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        took_s.append(time.perf_counter() - begin_s)
    mean = torch.tensor(float(np.median(took_s[1:])), dtype=torch.float64)
    dist.all_reduce(mean)
    return float(mean) / dist.get_world_size()


def compare(rank: int, name: str, num_rounds: int, num_steps: int, output: str) -> None:
    """Measure, simulate and train in turn; rank 0 writes seconds of each round and way."""
    torch.manual_seed(0)
    example, num_ranks = MAKE[name](), dist.get_world_size()
    _, cost, _ = measured_job(example)
    dealt = dealt_steps(example, num_ranks, num_steps)
    fed = {way: dealt for way in WAYS}
    if cost is not None:
        fed["paced"] = paced_steps(example, num_ranks, num_steps, cost)
    trainees = [Trainee(example, way, ranks) for way, ranks in fed.items()]
    rows = []
    for number in range(num_rounds):
        job, cost, passes = measured_job(example)
        for trainee in (*trainees[number % 3 :], *trainees[: number % 3]):
            simulated_s = trainee.simulated_s(job, cost, passes)
            rows.append((trainee.way, simulated_s, trainee.train(num_steps)))
    if rank == 0:
        Path(output).write_text(json.dumps({"rows": rows, "slowdown": job.slowdown}))


def ratios(name: str, num_ranks: int, options: Any) -> dict[str, Any]:
    """Return simulated over measured seconds of each way."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/rows.json"
        run_ranks(compare, num_ranks, name, options.rounds, options.steps, output, timeout_s=900.0)
        found = json.loads(Path(output).read_text(encoding="utf-8"))
    told: dict[str, Any] = {
        "slowdown": [round(s / found["slowdown"][0], 3) for s in found["slowdown"]]
    }
    for way in WAYS:
        pairs = np.array([row[1:] for row in found["rows"] if row[0] == way])
        told[way] = {
            "simulated_over_measured": spread(pairs[:, 0] / pairs[:, 1]),
            "measured_step_s": spread(pairs[:, 1]),
        }
    return told


def what_if(num_rounds: int, num_cores: int) -> dict[str, Any]:
    """Return what four ranks take, simulated from two recorded ones, over four recorded ones."""
    script, found = EXAMPLES / "ragged_text" / "train.py", []
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as folder:
            two, four = (_recorded(script, f"{folder}/{num}", num) for num in (2, 4))
        point = two.what_if([4], num_cores=num_cores).points[0]
        found.append((point.step_s / four.step_s, four.step_s / two.step_s))
    over, slower = np.array(found).T
    return {"simulated_over_measured": spread(over), "four_over_two_measured": spread(slower)}


def _recorded(script: Path, folder: str, num_ranks: int) -> Run:
    command = "import sys; from paceline.cli import main; sys.exit(main(sys.argv[1:]))"
    ours = ["run", "--nproc-per-node", str(num_ranks), "--json", "--output", folder]
    theirs = [str(script), "--epochs", str(num_ranks)]  # As many steps with any number of ranks.
    subprocess.run(
        [sys.executable, "-c", command, *ours, *theirs],
        check=True,
        capture_output=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Run.load(folder)


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--rounds", type=int, default=7)
    flags.add_argument("--steps", type=int, default=24, help="of each way and round (default 24)")
    flags.add_argument("--only", choices=(*MAKE, "whatif"), help="this example alone")
    options = flags.parse_args()
    num_cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = {"times": "simulated over measured", "cores": num_cores}
    for name in MAKE:
        if options.only in (None, name):
            result[name] = {f"{num} ranks": ratios(name, num, options) for num in (2, 4)}
    if options.only in (None, "whatif"):
        result["whatif, 2 to 4 ranks"] = what_if(max(options.rounds // 2, 1), num_cores)
    medians = [one["median"] for one in _all_ratios(result)]
    result["num_within_10_percent"] = sum(abs(one - 1) <= TARGET for one in medians)
    result["num_compared"] = len(medians)
    finish("simulated_steps", options, result, "torch")


def _all_ratios(found: Any) -> list[dict[str, float]]:
    """Return what is held by the name `simulated_over_measured`, however deep."""
    if not isinstance(found, dict):
        return []
    own = [found["simulated_over_measured"]] if "simulated_over_measured" in found else []
    return own + [one for value in found.values() for one in _all_ratios(value)]


if __name__ == "__main__":
    main()
