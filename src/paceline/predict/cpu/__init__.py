"""How long a step takes on this machine's CPU: the rates of its operators."""

from paceline.predict.cpu._fit import fit_cpu_rates
from paceline.predict.cpu._rates import CpuRates, OperatorTiming, StepTiming
