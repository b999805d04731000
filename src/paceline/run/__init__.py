"""A run in a folder: what was recorded, what it says, and what would change it."""

from paceline.run._folder import RunFolder
from paceline.run._steps import UNKNOWN, Steps

__all__ = ["UNKNOWN", "RunFolder", "Steps"]
