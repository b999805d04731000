"""How a program ends that used DistributedDataParallel beside Paceline."""

import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = """
import os
import sys
from pathlib import Path

import paceline.torch
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
DistributedDataParallel(torch.nn.Linear(2, 2))
dist.destroy_process_group()
tasks = Path("/proc/self/task").iterdir()
print([name for task in tasks if "gloo" in (name := (task / "comm").read_text())])
"""


def test_destroying_the_group_ends_its_threads_that_would_else_abort_the_process(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"
