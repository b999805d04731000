"""How long a step takes, at what cost, for how many epochs: estimates with intervals."""

from paceline.predict._conformal import Estimate, conformal_offsets
from paceline.predict.cpu import CpuRates, fit_cpu_rates
from paceline.predict.epochs import ConvergencePredictor, fit_convergence
from paceline.predict.remaining import LiveLine, RemainingEpochs, RemainingTime, StopRule
from paceline.predict.run import (
    EstimatedFloat,
    RunEstimate,
    RunSetup,
    TrainingTimePredictor,
    estimate_run,
    estimate_step,
    fit_predictor,
)
from paceline.predict.step import (
    StepEstimate,
    StepPredictor,
    fit_step_predictor,
    load_step_predictor,
    read_step_tables,
    save_step_predictor,
)
from paceline.predict.work import (
    Datasets,
    Device,
    Devices,
    LayerWork,
    MemoryEstimate,
    MemoryMoment,
    Models,
    OperatorWork,
    Optimizers,
    Workload,
    catalogue_workload,
    estimate_memory,
)

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
    "StopRule",
    "TrainingTimePredictor",
    "Workload",
    "catalogue_workload",
    "conformal_offsets",
    "estimate_memory",
    "estimate_run",
    "estimate_step",
    "fit_convergence",
    "fit_cpu_rates",
    "fit_predictor",
    "fit_step_predictor",
    "load_step_predictor",
    "read_step_tables",
    "save_step_predictor",
]
