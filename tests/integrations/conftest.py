"""Runs each framework's program once for all tests of its contract."""

import pytest
from tests.integrations.contract import Found, runs_of


@pytest.fixture(scope="class")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return runs_of(request.cls, tmp_path_factory.mktemp("runs"))
