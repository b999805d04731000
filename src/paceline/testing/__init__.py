"""What claims are proven on: network namespaces, emulated compute, ranks, peak memory."""

from paceline.testing._emulated import EmulatedModel
from paceline.testing._netlab import NetLab, bytes_per_s, netlab, why_not
from paceline.testing._peak_memory import measure_peak_bytes
from paceline.testing._spawn import run_ranks

__all__ = [
    "EmulatedModel", "NetLab", "bytes_per_s", "measure_peak_bytes", "netlab", "run_ranks",
    "why_not",
]  # fmt: skip
