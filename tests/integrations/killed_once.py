"""Run a program whose rank 1 is killed before its 13th step; torchrun then starts all again.

torchrun --max-restarts=1 tests/integrations/killed_once.py MODULE [FLAG ...]
"""

import os
import runpy
import sys

import torch

from paceline.testing.faults import Fault, at_call

STEP = 13
fault = Fault(action="kill", rank=1, step=0)


def strike() -> None:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1":
        fault.strike()


if __name__ == "__main__":
    with at_call(torch.optim.AdamW, "step", STEP, strike):
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
