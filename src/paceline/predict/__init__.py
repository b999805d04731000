"""How long a step takes, at what cost, for how many epochs: estimates with intervals."""

from paceline.predict._catalogue import Datasets, Devices, Models, Optimizers, catalogue_workload
from paceline.predict._conformal import Estimate, conformal_offsets
from paceline.predict._convergence import ConvergencePredictor, fit_convergence
from paceline.predict._cpu_fit import fit_cpu_rates
from paceline.predict._cpu_rates import CpuRates
from paceline.predict._curve import RemainingEpochs, StopRule
from paceline.predict._curve_live import LiveLine
from paceline.predict._curve_time import RemainingTime
from paceline.predict._devices import Device, all_devices, device
from paceline.predict._fitted import fit_predictor
from paceline.predict._memory import MemoryEstimate, estimate_memory
from paceline.predict._predictor_file import load_step_predictor, save_step_predictor
from paceline.predict._run_estimate import RunEstimate, RunSetup, StepTimes, estimate_run
from paceline.predict._step_predictor import StepEstimate, StepPredictor, fit_step_predictor
from paceline.predict._tables import read_step_tables
from paceline.predict._training_time import EstimatedFloat, TrainingTimePredictor, step_times
from paceline.predict._workload import LayerWork, MemoryMoment, OperatorWork, Workload

__all__ = [
    "ConvergencePredictor",
    "CpuRates",
    "Datasets",
    "Device",
    "Devices",
    "Estimate",
    "EstimatedFloat",
    "LayerWork",
    "LiveLine",
    "MemoryEstimate",
    "MemoryMoment",
    "Models",
    "OperatorWork",
    "Optimizers",
    "RemainingEpochs",
    "RemainingTime",
    "RunEstimate",
    "RunSetup",
    "StepEstimate",
    "StepPredictor",
    "StepTimes",
    "StopRule",
    "TrainingTimePredictor",
    "Workload",
    "all_devices",
    "catalogue_workload",
    "conformal_offsets",
    "device",
    "estimate_memory",
    "estimate_run",
    "fit_convergence",
    "fit_cpu_rates",
    "fit_predictor",
    "fit_step_predictor",
    "load_step_predictor",
    "read_step_tables",
    "save_step_predictor",
    "step_times",
]
