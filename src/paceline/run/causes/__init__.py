"""What slows a run: its steps side by side, what they cost, and the six causes told from that."""

from collections.abc import Callable

from paceline.run.causes._cause import Cause, CauseName
from paceline.run.causes._communication import communication
from paceline.run.causes._compute_model import ComputeModel, Work
from paceline.run.causes._evidence import Evidence
from paceline.run.causes._grid import CLASSES, Grid
from paceline.run.causes._imbalance import imbalance
from paceline.run.causes._loader import loader
from paceline.run.causes._padding import padding
from paceline.run.causes._replay import Replay
from paceline.run.causes._slow_rank import slow_rank
from paceline.run.causes._small_batch import small_batch

CAUSES: tuple[Callable[[Evidence], Cause], ...] = (
    imbalance,
    padding,
    loader,
    slow_rank,
    communication,
    small_batch,
)

__all__ = [
    "CAUSES",
    "CLASSES",
    "Cause",
    "CauseName",
    "ComputeModel",
    "Evidence",
    "Grid",
    "Replay",
    "Work",
]
