"""Paceline on a live PyTorch job: recorders, probes and executors."""

from paceline.torch._gather import gather_timeline
from paceline.torch._measure import measure_job, measure_link
from paceline.torch._ranks import run_ranks
from paceline.torch._watch import Watch, watch

__all__ = ["Watch", "gather_timeline", "measure_job", "measure_link", "run_ranks", "watch"]
