"""How long a run that is under way still takes: its curve so far, continued."""

from paceline.predict.remaining._curve import RemainingEpochs, StopRule
from paceline.predict.remaining._live import LiveLine
from paceline.predict.remaining._time import RemainingTime
