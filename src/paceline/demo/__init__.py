"""The main job on real text: default and tuned PyTorch beside Paceline."""

from paceline.demo._config import DemoConfig
from paceline.demo._corpus import Corpus, standard_library_functions
from paceline.demo._data import Batch, Share, TextDataset, padded_batch
from paceline.demo._model import ByteTransformer, example_losses
from paceline.demo._price import measured_job, new_optimizer, train_step
from paceline.demo._result import DemoResult
from paceline.demo._run import run_demo
from paceline.demo._show import show, show_verdict

__all__ = [
    "Batch",
    "ByteTransformer",
    "Corpus",
    "DemoConfig",
    "DemoResult",
    "Share",
    "TextDataset",
    "example_losses",
    "measured_job",
    "new_optimizer",
    "padded_batch",
    "run_demo",
    "show",
    "show_verdict",
    "standard_library_functions",
    "train_step",
]
