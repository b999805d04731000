"""For how many epochs a run trains until it has converged."""

from paceline.predict.epochs._calibration import chosen_probes, forest_errors
from paceline.predict.epochs._members import MEMBERS
from paceline.predict.epochs._pool import pooled_epochs
from paceline.predict.epochs._predictor import ConvergencePredictor, fit_convergence
from paceline.predict.epochs._rows import PROBES, Fold, Runs, Shift, folds
