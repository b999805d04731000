"""A run in a folder: what was recorded, what it says, and what would change it."""

from paceline.run._bucket_cap import BucketCap
from paceline.run._compare import Comparison
from paceline.run._curve import BALANCES, Curve, Point, WhatIf, powers_of_two
from paceline.run._folder import RunFolder
from paceline.run._run import Run
from paceline.run._steps import STEP_SPANS, UNKNOWN, Steps
from paceline.run._trace import Trace
from paceline.run._verdict import Verdict
from paceline.run._verified import Check, checks_of
from paceline.run._wire_model import COMMS, WireModel
from paceline.run.causes import Cause

__all__ = [
    "BALANCES",
    "COMMS",
    "STEP_SPANS",
    "UNKNOWN",
    "BucketCap",
    "Cause",
    "Check",
    "Comparison",
    "Curve",
    "Point",
    "Run",
    "RunFolder",
    "Steps",
    "Trace",
    "Verdict",
    "WhatIf",
    "WireModel",
    "checks_of",
    "powers_of_two",
]
