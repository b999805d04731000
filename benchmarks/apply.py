"""Claim: `paceline run --apply` gains at least 0.9 of what it predicts, on a script as it is.

`examples/ragged_text/train.py` knows nothing of Paceline. It trains on two ranks in the network lab
(1 Gbit/s, emulated), plain and with `--apply PLAIN-RUN` in turns. Both draw the same global batches
in the same order, so steps are compared by their number: those after the trial. `predicted` is
simulated in the run itself, from its first steps; `gain` of the verdict is said at its end.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _record import finish, parser, spread

from paceline.run import Run
from paceline.testing import netlab

SCRIPT = Path(__file__).parents[1] / "examples" / "ragged_text" / "train.py"
COMMAND = "import sys; from paceline.cli import main; sys.exit(main(sys.argv[1:]))"
NUM_RANKS, RATE, LIMIT_S = 2, "1gbit", 900
# Of Paceline: 16 plain steps, then 16 in which both ways take turns, and some to be sure.
NUM_LEFT_OUT = 40


def launch(namespaces: tuple[str, ...], output: Path, ours: list[str], theirs: list[str]) -> Any:
    """Run the script with one rank in each namespace; return what rank 0's launcher says."""
    env = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    place = ["--master-addr", "10.88.0.1", "--master-port", "29500", "--output", str(output)]
    ranks = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", namespace, sys.executable, "-c", COMMAND, "run", "--json"),
                *("--nnodes", str(NUM_RANKS), "--node-rank", str(rank), *place, *ours),
                *(str(SCRIPT), *theirs),
            ],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, namespace in enumerate(namespaces)
    ]
    try:
        said = [rank.communicate(timeout=LIMIT_S) for rank in ranks]
    finally:
        for rank in ranks:  # Asked, not killed: each has a rank of its own to end.
            rank.terminate()
            rank.wait()
    if any(rank.returncode for rank in ranks):
        raise RuntimeError("\n".join(errors[-2000:] for _, errors in said))
    return json.loads(said[0][0].strip().splitlines()[-1])


def pair(namespaces: tuple[str, ...], folder: Path, theirs: list[str]) -> dict[str, Any]:
    """Train plain, then with `--apply`, and compare the same steps."""
    plain = launch(namespaces, folder / "plain", [], theirs)
    ours = ["--apply", str(folder / "plain")]
    told = launch(namespaces, folder / "applied", ours, theirs)["applied"]
    before, after = (Run.load(folder / name).step_times_s for name in ("plain", "applied"))
    num = min(len(before), len(after))
    gain = float(before[NUM_LEFT_OUT:num].sum() / after[NUM_LEFT_OUT:num].sum())
    row = {**told, "same_steps_gain": gain, "num_steps": num - NUM_LEFT_OUT}
    row["plain_step_s"], row["applied_step_s"] = (
        float(np.mean(one[NUM_LEFT_OUT:num])) for one in (before, after)
    )
    row["causes_of_plain_run"] = plain["causes"]
    print(json.dumps(row), file=sys.stderr)
    return row


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--epochs", type=int, default=4)
    flags.add_argument("--batch-size", type=int, default=8, help="per rank")
    flags.add_argument("--examples", type=int, default=800)
    flags.add_argument("--max-bytes", type=int, default=1024)
    flags.add_argument("--dim", type=int, default=32)
    options = flags.parse_args()
    names = ("epochs", "batch_size", "examples", "max_bytes", "dim")
    theirs = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]
    rows = []
    with netlab(NUM_RANKS, RATE) as lab:
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(pair(lab.namespaces, Path(folder), theirs))
    kept = [row for row in rows if row["outcome"] == "kept"]
    parts = [row["same_steps_gain"] / row["predicted"] for row in kept]
    result = {
        "num_runs": len(rows),
        "num_kept": len(kept),
        "gain_measured_same_steps": spread([row["same_steps_gain"] for row in kept]),
        "gain_predicted": spread([row["predicted"] for row in kept]),
        "measured_over_predicted": spread(parts),
        "target": 0.9,
        "rows": rows,
    }
    finish("apply", options, result, "paceline", "torch")


if __name__ == "__main__":
    main()
