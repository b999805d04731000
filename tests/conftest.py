"""Settings of every test."""

from pathlib import Path

import pytest
from hypothesis import settings

# The first example compiles the code under test, which takes longer than any deadline.
settings.register_profile("paceline", deadline=None)
settings.load_profile("paceline")

# Their files start processes and take longest. A worker that took one last would leave the others
# idle: `--dist loadfile` gives whole files to workers in this order.
LONGEST_FIRST = ("distributed", "faults", "examples", "demo", "testing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent not in {tests / name for name in LONGEST_FIRST})
