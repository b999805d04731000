"""A whole run: step time, epochs, memory and cost together."""

from paceline.predict.run._estimate import RunEstimate, RunSetup, estimate_run, ring_link
from paceline.predict.run._fitted import estimate_step, fit_predictor
from paceline.predict.run._score import score_predictor
from paceline.predict.run._training_time import EstimatedFloat, TrainingTimePredictor
