"""The Hugging Face Trainer holds the contract, and what cannot be exact is refused."""

from tests.integrations.contract import FrameworkContract


class TestTransformers(FrameworkContract):
    program = "transformers_run.py"
