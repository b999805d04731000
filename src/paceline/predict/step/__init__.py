"""How long a step takes: a roofline, a loader, and what was learned from measured tables."""

from paceline.predict.step._estimate import StepEstimate
from paceline.predict.step._folds import folds, units
from paceline.predict.step._predictor import StepPredictor, fit_step_predictor
from paceline.predict.step._predictor_file import (
    digest_of,
    load_step_predictor,
    save_step_predictor,
)
from paceline.predict.step._probe_trials import NUM_PROBES
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import SHIFTS
from paceline.predict.step._workload_row import step_row
