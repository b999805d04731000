"""How long a step takes: a roofline, a loader, and what was learned from measured tables."""

from paceline.predict.step._calibration import StepEstimate, folds, units
from paceline.predict.step._predictor import StepPredictor, fit_step_predictor
from paceline.predict.step._predictor_file import (
    digest_of,
    load_step_predictor,
    save_step_predictor,
)
from paceline.predict.step._probe import NUM_PROBES
from paceline.predict.step._rows import StepRows, step_row
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import SHIFTS
