"""For how many epochs a run trains until it has converged."""

from paceline.predict.epochs._evaluate import evaluate_convergence, summary_lines
from paceline.predict.epochs._predictor import ConvergencePredictor, fit_convergence
from paceline.predict.epochs._rows import Runs

__all__ = [
    "ConvergencePredictor",
    "Runs",
    "evaluate_convergence",
    "fit_convergence",
    "summary_lines",
]
