"""Ray Train holds the contract, and its example goes on after a crash, on fewer workers."""

import os
from pathlib import Path

import pytest
from tests.integrations.contract import FrameworkContract, run_script

pytestmark = pytest.mark.filterwarnings("default")
# A busy machine takes longer than Ray waits by default; without a cluster there is no token.
PATIENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


@pytest.fixture(scope="session", autouse=True)
def patient() -> None:
    os.environ.update(PATIENT)


class TestRay(FrameworkContract):
    program = "ray_run.py"
    starts_itself = True


def test_the_example_goes_on_after_a_crash_and_on_fewer_workers(tmp_path: Path) -> None:
    example = ["-m", "examples.ray.train", "--examples", "400", "--out", str(tmp_path)]
    # 18 steps in two epochs; the newest checkpoint has 10.
    printed = run_script([*example, "--crash-after", "13"])
    assert "balanced, measured: 8 steps" in printed
    assert (tmp_path / "balanced/crashed").exists()
    printed = run_script([*example, "--workers", "1", "--epochs", "3"])
    assert "balanced, measured: 9 steps" in printed
