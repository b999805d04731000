"""Compare orders by name: bounds of random rows, and the time that each pass takes."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from paceline.order._balance import (
    coordinated_pair_balance,
    independent_mean_balance,
    independent_pair_balance,
    mean_balance,
    pair_balance,
    recursive_mean_balance,
    recursive_pair_balance,
    self_balancing_walk,
)
from paceline.order._herded import halve_and_herd, windowed_greedy
from paceline.order._policy import OrderPolicy
from paceline.order._shuffles import flip_flop, random_reshuffling, shuffle_once
from paceline.order._simulate import HerdingRun, gaussian_unit_rows, simulate_herding

MakePolicy = Callable[[int, int, int], OrderPolicy]

REFERENCE = "d-grab"
# Enough rows to compile every loop that the whole simulation will run.
WARM_UP_EXAMPLES, WARM_UP_WORKERS = 300, 4


def order_policies() -> dict[str, MakePolicy]:
    """Return, by name, what makes a policy of (number of examples, number of workers, seed).

    Stratified orders, which need labels, are not among them.

    Examples:
        >>> order_policies()["grab"](4, 2, 0).name
        'grab'
    """
    return {
        "random-reshuffling": _alone(random_reshuffling),
        "shuffle-once": _alone(shuffle_once),
        "flip-flop": _alone(flip_flop),
        "grab": _alone(mean_balance),
        "pair-balance": _alone(pair_balance),
        "i-b": _of_workers(independent_mean_balance),
        "i-pb": _of_workers(independent_pair_balance),
        "d-grab": _of_workers(coordinated_pair_balance),
        "recursive-mean-balance": _alone(recursive_mean_balance),
        "recursive-pair-balance": _alone(recursive_pair_balance),
        "self-balancing-walk": _alone(self_balancing_walk),
        "windowed-greedy": _alone(windowed_greedy),
        "halve-and-herd": _alone(halve_and_herd),
    }


def measure_herding(
    *,
    dim: int,
    num_examples: int,
    num_workers: int,
    num_rounds: int,
    num_trials: int = 1,
    seed: int = 1,
    policies: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Show policies the same Gaussian rows for some rounds; return bounds and times.

    Bounds are simulated, times measured, relative to those of D-GraB, which is always there.

    Args:
        dim: Columns of the rows.
        num_examples: Examples of each worker.
        num_workers: Examples of a step.
        num_rounds: Epochs to learn from, at least 1.
        num_trials: To average over, at least 1.
        seed: Of the first trial.
        policies: Names out of `order_policies`; unset for all.

    Returns:
        Plain values, safe to save as JSON.

    Raises:
        ValueError: If a name is unknown or a number out of range.
    """
    for name, value in (("rounds", num_rounds), ("trials", num_trials)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    made = order_policies()
    names = list(made) if policies is None else list(dict.fromkeys([REFERENCE, *policies]))
    unknown = [name for name in names if name not in made]
    if unknown:
        raise ValueError(f"policies must be among {', '.join(made)}, got {unknown[0]!r}")
    chosen = [made[name] for name in names]
    _warm_up(chosen, dim)
    runs: list[list[HerdingRun]] = [[] for _ in chosen]
    for trial in range(seed, seed + num_trials):
        rows = gaussian_unit_rows(dim, num_examples, num_workers, seed=trial)
        for make, of_one in zip(chosen, runs, strict=True):
            policy = make(len(rows), num_workers, trial)
            run = simulate_herding(policy, rows, batch_size=num_workers, num_rounds=num_rounds)
            of_one.append(run)
    reference_s = _pass_cpu_s(runs[names.index(REFERENCE)])
    return {
        "dim": dim,
        "examples": num_examples,
        "workers": num_workers,
        "rounds": num_rounds,
        "trials": num_trials,
        "source": "simulated; pass_cpu_s and relative_time measured",
        "bound": "largest absolute coordinate of any sum over whole steps; mean over trials",
        "reference": REFERENCE,
        "policies": {
            name: {**_summary(of_one), "relative_time": _pass_cpu_s(of_one) / reference_s}
            for name, of_one in zip(names, runs, strict=True)
        },
    }


def _alone(make: Callable[..., OrderPolicy]) -> MakePolicy:
    return lambda num_examples, _, seed: make(num_examples, seed=seed)


def _of_workers(make: Callable[..., OrderPolicy]) -> MakePolicy:
    return lambda num_examples, num_workers, seed: make(num_examples, num_workers, seed=seed)


def _warm_up(chosen: Iterable[MakePolicy], dim: int) -> None:
    rows = gaussian_unit_rows(dim, WARM_UP_EXAMPLES, WARM_UP_WORKERS)
    for make in chosen:
        policy = make(len(rows), WARM_UP_WORKERS, 0)
        simulate_herding(policy, rows, batch_size=WARM_UP_WORKERS, num_rounds=1)


def _summary(runs: Sequence[HerdingRun]) -> dict[str, Any]:
    rounds = list(zip(*(run.bounds for run in runs), strict=True))
    per_step = [[bound.per_step for bound in trials] for trials in rounds]
    means = [sum(trials) / len(runs) for trials in per_step]
    return {
        "bounds": means,
        "bounds_of_any_prefix": [
            sum(bound.per_example for bound in trials) / len(runs) for trials in rounds
        ],
        "smallest_of_a_trial": [min(trials) for trials in per_step],
        "largest_of_a_trial": [max(trials) for trials in per_step],
        "floor": min(means[1:]),
        "pass_cpu_s": _pass_cpu_s(runs),
    }


def _pass_cpu_s(runs: Iterable[HerdingRun]) -> float:
    return median(pass_cpu_s for run in runs for pass_cpu_s in run.pass_cpu_s)
