"""A run in a folder: what was recorded, what it says, and what would change it."""

from paceline.run._folder import RunFolder
from paceline.run._run import Run
from paceline.run._steps import UNKNOWN, Steps
from paceline.run._verdict import Verdict
from paceline.run.causes import Cause

__all__ = ["UNKNOWN", "Cause", "Run", "RunFolder", "Steps", "Verdict"]
