"""Where a run stands in its data, and what is left of an epoch for any number of workers."""

from paceline.balance.cursor._cursor import Cursor
from paceline.balance.cursor._planner import EpochPlanner
from paceline.balance.cursor._state import Segment
