"""Faults made on purpose: malformed inputs, limits on how they are taken."""

from paceline.testing.faults._limits import answer_of, limits
from paceline.testing.faults._mutate import mutated_bytes, mutated_state

__all__ = ["answer_of", "limits", "mutated_bytes", "mutated_state"]
