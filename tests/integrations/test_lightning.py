"""Lightning holds the contract, under its own launcher."""

from tests.integrations.contract import FrameworkContract


class TestLightning(FrameworkContract):
    program = "lightning_run.py"
    starts_itself = True
