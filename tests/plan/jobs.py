"""Small jobs of whole numbers, for the tests of schedules."""

import numpy as np
from hypothesis import strategies as st

from paceline.cost import Job, LayerCost, Link, QuadraticCost, Worker


def ragged_job(
    *,
    num_workers: int = 2,
    num_layers: int = 6,
    bytes_per_s: float = 4e9,
    spread: float = 1.0,
    num_examples: int = 512,
) -> Job:
    """Return a job of `num_layers` equal layers of 8 MB whose passes take 60 ms."""
    sizes = np.random.default_rng(0).lognormal(5.0, spread, num_examples).round() + 8
    each = LayerCost(name="", forward_s=0.003, backward_s=0.007, gradient_bytes=8_000_000)
    return Job(
        source="predicted",
        layers=(each,) * num_layers,
        link=Link(1e-4, bytes_per_s) if num_workers > 1 else None,
        workers=(Worker(overhead_s=0.002),) * num_workers,
        sizes=sizes,
        cost=QuadraticCost(6144.0, 1.0),
    )


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Draw any small job: layers, link, unequal workers, sizes."""
    halves = st.integers(0, 6).map(lambda count: count / 2)
    layers = tuple(
        LayerCost(
            name=str(index),
            forward_s=draw(halves),
            backward_s=draw(halves),
            gradient_bytes=draw(st.integers(0, 30)) << 20,
        )
        for index in range(draw(st.integers(1, 4)))
    )
    speeds = draw(st.lists(st.sampled_from([0.5, 1.0]), min_size=1, max_size=3))
    return Job(
        source="predicted",
        layers=layers,
        link=Link(draw(halves), float(10 << 20)),
        workers=tuple(Worker(speed=speed, overhead_s=draw(halves)) for speed in speeds),
        sizes=np.array(draw(st.lists(st.integers(1, 9), min_size=12, max_size=24)), dtype=float),
    )
