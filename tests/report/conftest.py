"""Runs whose steps are known: compute follows sizes, and collectives end together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paceline.run import UNKNOWN, Run, Steps

WIRE_S, OPTIMIZER_S, BETWEEN_S = 0.004, 0.003, 0.001


def made_steps(num_ranks: int, num_steps: int, *, knows_padding: bool = True) -> list[Steps]:
    """Return steps whose sizes are random, equally so on each rank."""
    rng = np.random.default_rng([num_ranks, num_steps])
    sizes = rng.lognormal(7.0, 0.5, (num_ranks, num_steps)).astype(np.int64)
    compute_s = 1e-5 * sizes
    arrival_s = BETWEEN_S + compute_s
    last_s = arrival_s.max(axis=0)
    step_s = last_s + WIRE_S + OPTIMIZER_S
    begin_s = np.cumsum(step_s) - step_s
    none = np.zeros((num_ranks, num_steps), np.float32)
    columns = {
        "begin_s": np.broadcast_to(begin_s, sizes.shape),
        "arrival_s": begin_s + arrival_s,
        "data_s": none,
        "between_s": none + np.float32(BETWEEN_S),
        "forward_s": (compute_s / 3).astype(np.float32),
        "loss_s": none,
        "backward_s": (compute_s * 2 / 3).astype(np.float32),
        "collective_s": (last_s - arrival_s + WIRE_S).astype(np.float32),
        "after_s": none,
        "optimizer_s": none + np.float32(OPTIMIZER_S),
        "num_microbatches": np.ones(sizes.shape, np.int32),
        "num_examples": np.full(sizes.shape, 8, np.int64),
        "num_elements": sizes,
        "num_padding": sizes // 4 if knows_padding else np.full(sizes.shape, UNKNOWN, np.int64),
    }
    return [Steps(*(columns[name][rank] for name in Steps._fields)) for rank in range(num_ranks)]


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """Return what makes a run of so many ranks and steps."""

    def make(num_ranks: int, num_steps: int, *, knows_padding: bool = True, **info: Any) -> Run:
        return Run.of(made_steps(num_ranks, num_steps, knows_padding=knows_padding), info=info)

    return make
