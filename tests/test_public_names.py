import re
import tomllib
from pathlib import Path

import paceline

ROOT = Path(__file__).parents[1]
# What messages and the README tell people to install, in brackets.
EXTRAS = re.compile(r"""paceline\[([a-z,]+)\]|"\.\[([a-z,]+)\]"|needing\("[^"]*", "([a-z,]+)\"""")

PUBLIC = {
    "BalancedBatchSampler",
    "BalancedSampler",
    "Checkpoint",
    "DataLoader",
    "Job",
    "LayerCost",
    "LinearCost",
    "Link",
    "QuadraticCost",
    "Schedule",
    "ScheduledDataParallel",
    "Summary",
    "Timeline",
    "Worker",
    "advise",
    "measure_job",
    "simulate",
    "simulate_schedule",
    "split_backward",
    "tune",
    "watch",
}


def test_the_public_names_are_those_of_the_first_tutorial() -> None:
    assert set(paceline.__all__) == PUBLIC
    assert set(dir(paceline)) == PUBLIC | {"__version__"}


def test_every_public_name_can_be_had() -> None:
    assert {name for name in PUBLIC if getattr(paceline, name).__name__ == name} == PUBLIC


def test_extras_that_anything_names_exist() -> None:
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "README.md", ROOT / "Makefile"]
    found = EXTRAS.findall("\n".join(file.read_text(encoding="utf-8") for file in files))
    named = {name for groups in found for part in groups for name in part.split(",") if name}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"torch", "report", "predict"} <= named <= set(project["optional-dependencies"])
