"""How long a step takes: a roofline, a loader, and what was learned from measured tables."""

from paceline.predict.step._calibration import folds, units
from paceline.predict.step._estimate import StepEstimate
from paceline.predict.step._execution import Execution
from paceline.predict.step._loader import fit_loader_rates
from paceline.predict.step._loader_probe import LoaderProbe, probe_loader
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
