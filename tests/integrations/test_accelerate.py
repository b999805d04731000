"""Accelerate holds the contract, and its modes that cannot are refused."""

from tests.integrations.contract import FrameworkContract


class TestAccelerate(FrameworkContract):
    program = "accelerate_run.py"
