"""A whole run: step time, epochs, memory and cost together."""

from paceline.predict.run._estimate import RunEstimate, RunSetup, StepTimes, estimate_run, ring_link
from paceline.predict.run._fitted import fit_predictor
from paceline.predict.run._training_time import EstimatedFloat, TrainingTimePredictor, step_times

__all__ = [
    "EstimatedFloat",
    "RunEstimate",
    "RunSetup",
    "StepTimes",
    "TrainingTimePredictor",
    "estimate_run",
    "fit_predictor",
    "ring_link",
    "step_times",
]
