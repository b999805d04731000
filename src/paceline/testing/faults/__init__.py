"""Faults made on purpose: to ranks, replicas, files and inputs; and what came of them.

How a training loop is tested with them is in `docs/guarantees.md`.
"""

from paceline.testing.faults._fault import Fault, at_call, damage, flip_bit
from paceline.testing.faults._launches import Launch, launch, run_through
from paceline.testing.faults._ledger import Balance, Ledger
from paceline.testing.faults._limits import answer_of, limits
from paceline.testing.faults._mutate import mutated_bytes, mutated_state

__all__ = [
    "Balance", "Fault", "Launch", "Ledger", "answer_of", "at_call", "damage", "flip_bit", "launch",
    "limits", "mutated_bytes", "mutated_state", "run_through",
]  # fmt: skip
