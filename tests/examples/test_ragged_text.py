"""The ragged text example under `paceline run`: it trains, and every step is recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

from paceline.run import Run

SCRIPT = Path(__file__).parents[2] / "examples" / "ragged_text" / "train.py"
CLI = [sys.executable, "-c", "import sys; from paceline.cli import main; sys.exit(main())"]
SMALL = ["--batch-size", "8", "--examples", "128", "--dim", "16", "--max-bytes", "256"]


def test_it_trains_and_is_recorded(tmp_path: Path) -> None:
    """Two ranks on one machine: the script is not edited, and ends as it does under torchrun."""
    output = tmp_path / "run"
    launched = subprocess.run(
        [*CLI, "run", "--nproc-per-node=2", "--json", f"--output={output}", str(SCRIPT), *SMALL],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert launched.returncode == 0, launched.stderr
    *losses, line = launched.stdout.splitlines()
    first, second = (float(loss.rpartition(" ")[2]) for loss in losses)
    assert second < first
    told, run = json.loads(line), Run.load(output)
    assert [run.info[key] for key in ("state", "exit_code", "num_ranks")] == ["ended", 0, 2]
    assert run.info["command"][:2] == ["paceline", "run"]
    # 128 examples on two ranks in batches of 8, twice; the first step finds the model.
    assert run.num_steps + len(run.warm_up[0].begin_s) == 2 * 8 - 1
    for facts, steps in zip(run.facts, run.steps, strict=True):
        assert facts["parallel"] == "DistributedDataParallel"
        assert (facts["sampler"], facts["dataset"]) == ("DistributedSampler", "Functions")
        assert set(steps.num_examples.tolist()) == {8}
        assert (steps.num_padding > 0).all()
        assert (steps.num_padding < steps.num_elements).all()
    causes = [cause.cause for cause in run.verdict().causes]
    assert [cause["cause"] for cause in told["causes"]] == causes
