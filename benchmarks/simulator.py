"""Claim: the simulator runs a million tasks in under 5 seconds, and a long run in little memory.

The long run: ranks whose compute varies from step to step, one all-reduce per layer, simulated
step by step. A short one is simulated at once, too, and both must be equal.
"""

import resource
import time
from typing import Any

import numpy as np
from _record import finish, parser, spread

from paceline.cost import Job, LayerCost, Link, Worker
from paceline.plan import data_parallel_graph
from paceline.timeline import Kind, TaskGraph, simulate, simulate_steps

NUM_RANKS, TASKS_PER_COLLECTIVE, NUM_REPEATS = 8, 10, 5


def training_like_graph(num_tasks: int) -> TaskGraph:
    """Return ranks that compute nine tasks, then all-reduce on a lane of their own."""
    index = np.arange(num_tasks - num_tasks % (NUM_RANKS * TASKS_PER_COLLECTIVE))
    rank, position = index % NUM_RANKS, index // NUM_RANKS
    is_wire = position % TASKS_PER_COLLECTIVE == TASKS_PER_COLLECTIVE - 1
    wires = index[is_wire]
    has_next = wires + NUM_RANKS < len(index)
    after_compute = np.stack([wires - NUM_RANKS, wires], axis=1)
    before_compute = np.stack([wires, wires + NUM_RANKS], axis=1)[has_next]
    return TaskGraph.from_columns(
        np.random.default_rng(0).random(len(index)),
        edges=np.concatenate([after_compute, before_compute]),
        rank=rank,
        lane=is_wire.astype(int),
        kind=np.where(is_wire, Kind.COLLECTIVE, Kind.COMPUTE),
        collective=np.where(is_wire, position // TASKS_PER_COLLECTIVE, -1),
        lanes=("main", "comm"),
    )


def layered_job(num_ranks: int, num_layers: int) -> Job:
    layers = [
        LayerCost(name=str(n), forward_s=1e-4, backward_s=2e-4, gradient_bytes=1_000_000)
        for n in range(num_layers)
    ]
    return Job(
        source="predicted",
        layers=tuple(layers),
        link=Link(alpha_s=1e-5, bytes_per_s=1e10),
        workers=(Worker(overhead_s=1e-3),) * num_ranks,
    )


def step_ends_s(job: Job, compute_s: np.ndarray[Any, Any]) -> list[float]:
    """Return when each step ends, simulated one by one; computes `(num_steps, num_ranks)`."""
    buckets = [[layer] for layer in reversed(range(len(job.layers)))]
    graph = data_parallel_graph(job, np.ones((1, len(job.workers))), buckets=buckets)
    is_compute = np.isin(graph.kind, (Kind.FORWARD, Kind.BACKWARD))
    durations = (
        graph.duration_s * np.where(is_compute, own_s[graph.rank], 1.0) for own_s in compute_s
    )
    return [float(step.end_s.max()) for step in simulate_steps(graph, durations)]


def long_run(num_ranks: int, num_layers: int, num_steps: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    small, compute_s = layered_job(8, 20), random.uniform(0.2, 0.4, (5, 8))
    buckets = [[layer] for layer in reversed(range(20))]
    at_once = simulate(data_parallel_graph(small, compute_s, buckets=buckets))
    ends_s = [float(at_once.end_s[at_once.step == step].max()) for step in range(5)]
    assert step_ends_s(small, compute_s) == ends_s, "steps one by one differ from those at once"
    compute_s = random.uniform(0.2, 0.4, (num_steps, num_ranks))
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    step_ends_s(layered_job(num_ranks, num_layers), compute_s)
    return {
        "num_ranks": num_ranks,
        "num_layers": num_layers,
        "num_steps": num_steps,
        "num_tasks": num_steps * num_ranks * (2 * num_layers + 3),
        "wall_s": time.perf_counter() - begin_s,
        "cpu_s": time.process_time() - begin_cpu_s,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--tasks", type=int, default=1_000_000)
    flags.add_argument("--long-run", type=int, nargs=3, default=[1024, 1000, 100])
    options = flags.parse_args()
    long = long_run(*options.long_run)
    first = time.perf_counter()
    simulate(training_like_graph(1000)).summary()
    compiled_s = time.perf_counter() - first
    graph = training_like_graph(options.tasks)
    simulate_s, summary_s = [], []
    for _ in range(NUM_REPEATS):
        start = time.process_time()
        run = simulate(graph)
        middle = time.process_time()
        run.summary()
        simulate_s.append(middle - start)
        summary_s.append(time.process_time() - middle)
    result = {
        "num_tasks": len(graph),
        "num_edges": len(graph.before),
        "simulate_cpu_s": spread(simulate_s),
        "summary_cpu_s": spread(summary_s),
        "first_call_s": compiled_s,
        "long_run": long,
    }
    finish("simulator", options, result)


if __name__ == "__main__":
    main()
