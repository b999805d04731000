import subprocess
import sys

import pytest

ROOMS = ("timeline", "cost", "balance", "comm", "order", "overlap", "plan", "predict")
HEAVY = ("torch", "matplotlib", "rich", "lightgbm", "sklearn")


@pytest.mark.parametrize(
    "statement",
    ["import paceline", *(f"import paceline.{room}" for room in ROOMS)],
)
def test_a_fresh_process_imports_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_ranks_start_without_what_few_of_them_use() -> None:
    code = (
        "import sys, paceline.torch as p; print('torch.distributed.checkpoint' in sys.modules,"
        " p.AsyncCheckpoint.__name__, 'torch.distributed.checkpoint' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["False", "AsyncCheckpoint", "True"]
