"""The ordering examples: they run on two ranks, under every sorter, and losses fall."""

import io
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from paceline.testing import run_ranks

EXAMPLE = Path(__file__).parents[2] / "examples" / "ordering"
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COMMON = ["--grad_acc", "2", "--backend", "gloo"]
SORTERS = {"logistic_regression.py": "I-B", "lenet.py": "I-PB", "lstm.py": "D-RR"}


def losses_in(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


def run_all(rank: int, out: Path) -> None:
    """Run the scripts one after the other in the group of these ranks, which they would make."""
    sys.path.insert(0, str(EXAMPLE))
    straight = {}
    for script, sorter in SORTERS.items():
        straight[script] = run_here(script, "--sorter", sorter, "--epochs", "2")
        if rank == 0:
            assert straight[script][1] < straight[script][0], script
    # Goes on from what the run before saved, with the order that was learnt.
    script, sorter = next(iter(SORTERS.items()))
    parts = [
        run_here(script, "--sorter", sorter, "--epochs", epochs, "--out", str(out))
        for epochs in ("1", "2")
    ]
    if rank == 0:
        assert [len(part) for part in parts] == [1, 1]
        assert [*parts[0], *parts[1]] == straight[script]


def run_here(script: str, *flags: str) -> list[float]:
    """Run a script in the group that is there; return the losses that this rank printed."""
    common = [*COMMON, "--num_examples", "72", "--lr", "0.3"]
    with (
        redirect_stdout(io.StringIO()) as printed,
        patch.object(sys, "argv", [script, *common, *flags]),
        patch("torch.distributed.init_process_group"),
        patch("torch.distributed.destroy_process_group"),
    ):
        runpy.run_path(str(EXAMPLE / script), run_name="__main__")
    return losses_in(printed.getvalue())


ENDED = """
import runpy, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.argv = ["lenet.py", "--num_examples", "16", "--epochs", "1", "--grad_acc", "2"]
runpy.run_path(f"{sys.path[0]}/lenet.py", run_name="__main__")
names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
print("left:", [name for name in names if "gloo" in name])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_thread_is_left_that_could_abort_the_end_of_the_program() -> None:
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ENDED, str(EXAMPLE)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | place,
    )
    assert done.stdout.splitlines()[-1:] == ["left: []"], done.stderr[-3000:]


@pytest.mark.slow
def test_each_example_runs_and_its_loss_falls(tmp_path: Path) -> None:
    run_ranks(run_all, 2, tmp_path)


@pytest.mark.slow
def test_torchrun_starts_one_and_sentences_come_from_a_glue_like_file(tmp_path: Path) -> None:
    lines = [f"{i}\tan {'awful' if i % 2 else 'excellent'} film\t{i % 2}" for i in range(64)]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["index\tsentence\tlabel", *lines]), encoding="utf-8")
    flags = ["--tsv", str(path), "--lr", "2", "--epochs", "4"]
    done = subprocess.run(
        [*LAUNCH, str(EXAMPLE / "logistic_regression.py"), *COMMON, *flags],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = losses_in(done.stdout)
    assert len(losses) == 4
    assert losses[-1] < 0.4
