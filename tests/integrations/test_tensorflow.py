"""TensorFlow holds the contract."""

from types import SimpleNamespace

import pytest
from tests.integrations.contract import FrameworkContract
from tests.integrations.data import SIZES, config_of
from tests.integrations.tensorflow_run import Source

from paceline.integrations.tensorflow import BalancedLoader

pytestmark = pytest.mark.filterwarnings("default")


class TestTensorflow(FrameworkContract):
    program = "tensorflow_run.py"
    has_no_launcher = True


def test_what_was_fetched_ahead_is_not_delivered() -> None:
    loader, other = (BalancedLoader(Source(), SIZES, config_of(2)) for _ in range(2))
    batches = iter(loader)
    found = [next(batches)["example"].numpy().tolist() for _ in range(5)]
    other.load_state_dict(loader.state_dict())
    assert next(iter(other))["example"].numpy().tolist() == found[4]


def test_several_replicas_of_one_process_are_refused() -> None:
    several = SimpleNamespace(cluster_resolver=None, num_replicas_in_sync=4)
    with pytest.raises(ValueError, match="must have one replica, got 4 replicas of 1 workers"):
        BalancedLoader(Source(), SIZES, config_of(1), strategy=several)
