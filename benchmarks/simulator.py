"""Claim: the simulator runs a million tasks in under 5 seconds."""

import time

import numpy as np
from _record import finish, parser, spread

from paceline.timeline import Kind, TaskGraph, simulate

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


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--tasks", type=int, default=1_000_000)
    options = flags.parse_args()
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
    }
    finish("simulator", options, result)


if __name__ == "__main__":
    main()
