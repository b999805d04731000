"""The ordering examples: they run on two ranks, under every sorter, and losses fall."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ordering"
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def losses_of(script: str, *flags: str) -> list[float]:
    command = [*LAUNCH, str(EXAMPLE / script), "--grad_acc", "2", "--backend", "gloo", *flags]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "sorter"),
    [("logistic_regression.py", "I-B"), ("lenet.py", "I-PB"), ("lstm.py", "D-RR")],
)
def test_an_example_runs_and_its_loss_falls(script: str, sorter: str) -> None:
    flags = ("--sorter", sorter, "--num_examples", "72", "--epochs", "2", "--lr", "0.3")
    first, second = losses_of(script, *flags)
    assert second < first


@pytest.mark.slow
def test_sentences_come_from_a_glue_like_file(tmp_path: Path) -> None:
    lines = [f"{i}\tan {'awful' if i % 2 else 'excellent'} film\t{i % 2}" for i in range(64)]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["index\tsentence\tlabel", *lines]), encoding="utf-8")
    losses = losses_of("logistic_regression.py", "--tsv", str(path), "--lr", "2", "--epochs", "4")
    assert len(losses) == 4
    assert losses[-1] < 0.4
