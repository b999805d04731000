"""A wire and a model to prove communication on: network namespaces and emulated compute."""

from paceline.testing._emulated import EmulatedModel
from paceline.testing._netlab import NetLab, bytes_per_s, netlab, why_not

__all__ = ["EmulatedModel", "NetLab", "bytes_per_s", "netlab", "why_not"]
