"""Every block planner on published models over a grid of links; all *simulated*."""

import time
from itertools import product
from typing import Any

import numpy as np
from _comm_models import MODELS, VALUE_BYTES, layers_of, problem_of
from _record import spread

from paceline.comm import WireProblem, baseline_plans, fluid_bound_s, plan_blocks, step_time_s
from paceline.cost import Link

FORWARD_S, BACKWARD_S = 0.1, 0.2
RATIOS = (0.5, 0.8, 1.0, 1.3, 2.0)
LATENCIES_S = (1e-4, 1e-3)
# What each hop around the ring past the first two adds to the latency of a collective.
HOP_S = 5e-6
NUM_IN_FLIGHT = 2
WORSE = 1e-9
POLICIES = {
    "ddp": "ddp_best_s",
    "wait-free": "wait_free_s",
    "bytescheduler": "bytescheduler_s",
    "p3": "p3_s",
    "mg-wfbp": "mg_wfbp_s",
    "dear": "dear_s",
    "prophet": "prophet_s",
}
Row = dict[str, Any]


def ring_link(two_ranks: Link, num_ranks: int) -> Link:
    """Return the link of a ring of `num_ranks` made of wires like that between `two_ranks`.

    A ring all-reduce moves `2 (W - 1) / W` times the payload over each wire, which is the
    payload itself for W = 2, in `2 (W - 1)` hops, of which those past the first two add
    `HOP_S` each.
    """
    factor = 2 * (num_ranks - 1) / num_ranks
    latency_s = two_ranks.alpha_s + 2 * (num_ranks - 2) * HOP_S
    return Link(latency_s, two_ranks.bytes_per_s / factor)


def grid(ranks: list[int]) -> Row:
    """Return a row per case, and what they come to."""
    rows = [
        _row(model, ratio, latency_s, num_ranks)
        for model, ratio, latency_s, num_ranks in product(MODELS, RATIOS, LATENCIES_S, ranks)
    ]
    return {
        "source": "simulated",
        "compute_s": FORWARD_S + BACKWARD_S,
        "num_in_flight": NUM_IN_FLIGHT,
        "wire_over_compute": "of two ranks; more ranks move up to twice the bytes",
        "summary": _summary(rows),
        "planning_1000_tensors_cpu_s": _planning_s(),
        "rows": rows,
    }


def link_of(model: str, ratio: float, latency_s: float, num_ranks: int) -> Link:
    """Return a link that takes `ratio` times the compute time for `model` between two ranks."""
    total_bytes = VALUE_BYTES * sum(sum(layer.tensors) for layer in layers_of(model))
    two_ranks = Link(latency_s, total_bytes / (ratio * (FORWARD_S + BACKWARD_S)))
    return ring_link(two_ranks, num_ranks)


def _row(model: str, ratio: float, latency_s: float, num_ranks: int) -> Row:
    link = link_of(model, ratio, latency_s, num_ranks)
    both, one = (
        problem_of(
            model, forward_s=FORWARD_S, backward_s=BACKWARD_S, link=link, num_in_flight=number
        )
        for number in (NUM_IN_FLIGHT, 1)
    )
    plan = plan_blocks(both)
    return {
        "source": "simulated",
        "model": model,
        "wire_over_compute": ratio,
        "latency_s": latency_s,
        "ranks": num_ranks,
        "bound_s": both.bound_s,
        "fluid_bound_s": fluid_bound_s(both),
        "fluid_bound_of_all_reduces_s": fluid_bound_s(both, latency_share=1.0),
        **best_times(both),
        "paceline_s": step_time_s(both, plan),
        "paceline_choice": plan.name,
        "paceline_num_blocks": plan.num_blocks,
        "one_in_flight": {
            **best_times(one),
            "paceline_s": step_time_s(one, plan_blocks(one)),
        },
    }


def best_times(problem: WireProblem) -> dict[str, float]:
    """Price all baselines; of a policy with a size, the best size."""
    times: dict[str, float] = {}
    for plan in baseline_plans(problem):
        price_s = step_time_s(problem, plan)
        if plan.name == "ddp 25 MiB":
            times["ddp_25_s"] = price_s
        key = POLICIES[plan.name.split()[0]]
        times[key] = min(price_s, times.get(key, np.inf))
    return times


def _summary(rows: list[Row]) -> Row:
    ours = {model: [row for row in rows if row["model"] == model] for model in MODELS}
    of_two = {m: [row for row in cases if row["ranks"] == 2] for m, cases in ours.items()}
    return {
        "num_cases": len(rows),
        "num_worse_than_a_baseline": sum(map(_is_worse, rows)),
        "num_better_than_all_baselines": sum(map(_is_better, rows)),
        "paceline_worst_over_bound": _worst_by_model(ours, "bound_s"),
        "paceline_worst_over_bound_of_two_ranks": _worst_by_model(of_two, "bound_s"),
        "paceline_worst_over_fluid_bound": _worst_by_model(ours, "fluid_bound_s"),
        "paceline_worst_over_fluid_bound_of_two_ranks": _worst_by_model(of_two, "fluid_bound_s"),
        "fluid_bound_worst_over_bound": {
            model: _worst(cases, "fluid_bound_s") for model, cases in ours.items()
        },
        "worst_of_all_over_bound": {
            key: _worst(rows, key) for key in ("ddp_25_s", *POLICIES.values(), "paceline_s")
        },
    }


def _worst_by_model(cases: dict[str, list[Row]], bound: str) -> dict[str, float]:
    return {model: _worst(rows, "paceline_s", bound) for model, rows in cases.items()}


def _worst(rows: list[Row], key: str, bound: str = "bound_s") -> float:
    return round(max((row[key] / row[bound] for row in rows), default=float("nan")), 4)


def _is_worse(row: Row) -> bool:
    return any(
        case["paceline_s"] > case[key] * (1 + WORSE)
        for case in (row, row["one_in_flight"])
        for key in POLICIES.values()
    )


def _is_better(row: Row) -> bool:
    return all(row["paceline_s"] < row[key] * (1 - WORSE) for key in POLICIES.values())


def _planning_s(num_tensors: int = 1000, num_repeats: int = 5) -> dict[str, float]:
    generator = np.random.default_rng(0)
    share = generator.dirichlet(np.full(num_tensors, 2.0))
    num_bytes = generator.lognormal(12, 1.5, num_tensors)
    problem = WireProblem(
        forward_s=FORWARD_S * share,
        layer=np.arange(num_tensors),
        num_bytes=num_bytes,
        ready_s=BACKWARD_S * np.cumsum(share[::-1])[::-1],
        backward_s=BACKWARD_S,
        link=Link(1e-4, num_bytes.sum() / (FORWARD_S + BACKWARD_S)),
        num_in_flight=NUM_IN_FLIGHT,
    )
    plan_blocks(problem)
    seconds = []
    for _ in range(num_repeats):
        start_s = time.process_time()
        plan_blocks(problem)
        seconds.append(time.process_time() - start_s)
    return spread(seconds)
