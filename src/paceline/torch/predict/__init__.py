"""Trace a model's work without running it, time it on the CPU, collect steps to learn from."""

from paceline.torch.predict._calibrate_cpu import calibrate_cpu
from paceline.torch.predict._calibration_models import TimedModel
from paceline.torch.predict._collect import CollectConfig, collect_steps
from paceline.torch.predict._measured_step import measure_step, threads, time_steps
from paceline.torch.predict._trace import record_step, trace_workload
from paceline.torch.predict._trace_setup import ExampleInput, Inputs, StepSetup, build, inputs_for
