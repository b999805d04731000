"""What every framework must hold, whatever launches it and however it counts."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.integrations.data import (
    NUM_EPOCHS,
    POINTS,
    SIZES,
    STEPS_PER_EPOCH,
    global_batches,
    plain_parameters,
)

ROOT = Path(__file__).parents[2]
RANKS = (2, 1, 3)
TOLERANCE = 3e-7
Run = list[dict[str, Any]]
Found = dict[int, dict[str, Run]]


def run_script(command: list[str], timeout_s: float = 600.0) -> str:
    """Run one program of the tests with the sources of this checkout; return what it printed."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    # torch 2.13 else keeps addresses of ranks that are gone; see docs/several-machines.md.
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except BaseException:
        # A launcher that is asked to end takes its ranks with it; one that is killed leaves them.
        process.terminate()
        process.communicate(timeout=60)
        raise
    assert process.returncode == 0, printed
    return printed


def torchrun(num_ranks: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]


def steps_of(run: Run) -> list[list[int]]:
    """Return the examples of each step, of all ranks together."""
    by_rank = []
    for rank in run:
        steps: list[list[int]] = [[]]
        for examples, is_step_end in rank["batches"]:
            steps[-1] += examples
            if is_step_end:
                steps.append([])
        assert steps.pop() == []
        by_rank.append(steps)
    return [sorted(chain.from_iterable(parts)) for parts in zip(*by_rank, strict=True)]


def check_goes_on(example: str, folder: Path, *, num_steps: int) -> None:
    """Kill a rank of an example in the 13th of 18 steps, and expect torchrun to go on.

    Args:
        example: Its module.
        folder: For checkpoints.
        num_steps: That are left after the newest checkpoint then.
    """
    killed = str(Path(__file__).with_name("killed_once.py"))
    flags = ["--examples", "400", "--out", str(folder)]
    printed = run_script([*torchrun(2), "--max-restarts=3", killed, example, *flags])
    assert f"balanced, measured: {num_steps} steps" in printed
    with pytest.raises(AssertionError, match="is a checkpoint of an earlier run"):
        run_script([*torchrun(2), "-m", example, *flags, "--resume", "never"])


class FrameworkContract:
    """Inherit it in a test module of one framework, and say what runs it.

    Attributes:
        program: Script that trains with the framework; see `tests/integrations/data.py`.
        starts_itself: Whether the framework starts the ranks; else torchrun does.
        has_no_launcher: Whether ranks are plain processes; see `processes.py`.
    """

    program: ClassVar[str]
    starts_itself: ClassVar[bool] = False
    has_no_launcher: ClassVar[bool] = False

    def test_all_ranks_have_equally_many_batches(self, found: Found) -> None:
        for runs in found.values():
            for run in runs.values():
                assert len({len(rank["batches"]) for rank in run}) == 1

    def test_each_example_comes_once_per_epoch(self, found: Found) -> None:
        for name in ("1 from None", "2 from None"):
            steps = steps_of(found[2][name])
            assert len(steps) == NUM_EPOCHS * STEPS_PER_EPOCH
            for epoch in range(NUM_EPOCHS):
                part = steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH]
                assert sorted(chain.from_iterable(part)) == list(range(len(SIZES)))

    def test_the_seed_gives_the_global_batches_of_every_framework(self, found: Found) -> None:
        expected = global_batches()
        for runs in found.values():
            for name, run in runs.items():
                point = name.split(" from ")[1].split(",")[0]
                assert steps_of(run) == expected[0 if point == "None" else int(point) :], name

    @pytest.mark.parametrize("num_ranks", RANKS)
    def test_parameters_are_those_of_one_plain_process(self, found: Found, num_ranks: int) -> None:
        expected = {over: plain_parameters(over_tokens=over) for over in (False, True)}
        for name, run in found[num_ranks].items():
            for rank in run:
                difference = np.subtract(rank["parameters"], expected["tokens" in name])
                assert np.abs(difference).max() < TOLERANCE, name

    def test_runs_went_on_at_every_point_on_every_number_of_ranks(self, found: Found) -> None:
        for runs in found.values():
            wanted = {f"{micro} from {point}" for micro in (1, 2) for point in POINTS}
            assert wanted <= runs.keys()


def runs_of(contract: type[FrameworkContract], folder: Path) -> Found:
    """Train on two ranks, and go on from its checkpoints on two, on one and on three."""
    for num_ranks in RANKS:
        launch = [] if contract.starts_itself else torchrun(num_ranks)
        if contract.has_no_launcher:
            launch = [str(Path(__file__).with_name("processes.py"))]
        script = str(Path(__file__).with_name(contract.program))
        run_script([*launch, script, str(folder), str(num_ranks)])
    return {num_ranks: records(folder, num_ranks) for num_ranks in RANKS}


def records(folder: Path, num_ranks: int) -> dict[str, Run]:
    """Return what the ranks wrote, by run."""
    ranks = [
        json.loads((folder / f"{num_ranks}-ranks-{rank}.json").read_text(encoding="utf-8"))
        for rank in range(num_ranks)
    ]
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}
