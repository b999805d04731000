"""One rank of a small run that counts its examples; torchrun starts it, and starts it again.

    torchrun --max-restarts=3 benchmarks/_restart_ranks.py FOLDER [--kill RANK:STEP ...]

Each `--kill` strikes one start of the run, in turn.
"""

import argparse
import json
import os
from datetime import timedelta
from pathlib import Path

import torch
from _fault_runs import LIMIT_S, WRAPS, train
from torch import distributed as dist

from paceline.testing.faults import Fault


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("folder", type=Path)
    flags.add_argument("--wrap", choices=WRAPS, default="ddp")
    flags.add_argument("--dropout", type=float, default=0.0)
    flags.add_argument("--step-s", type=float, default=0.0)
    flags.add_argument("--timeout-s", type=float, default=LIMIT_S)
    flags.add_argument("--kill", nargs="*", default=[])
    options = flags.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout_s))
    rank, start = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    fault = None
    if start < len(options.kill):
        number, step = map(int, options.kill[start].split(":"))
        fault = Fault(action="kill", rank=number, step=step)
    if rank == 0:
        with (options.folder / "starts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dist.get_world_size()) + "\n")
    train(rank, fault, str(options.folder), options.wrap, options.dropout, step_s=options.step_s)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
