"""`paceline plan --buckets`: which bucket size DistributedDataParallel should use, from a job."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline._files import shown, told

# NumPy and numba take most of a second to import: what needs them is imported inside.
if TYPE_CHECKING:
    from paceline.cost import Job

JOB = "a .json file, or module:name of a Job or of a function that returns one"
NUM_IN_FLIGHT = 2
MAX_LAYERS = 10_000
MAX_OF = {"forward_s": 1e6, "backward_s": 1e6, "alpha_s": 1e6, "gradient_bytes": 1e15}


def run_buckets(where: str, *, is_json: bool) -> int:
    """Price bucket sizes for the job at `where` and print the advice; all times are simulated."""
    from paceline.comm import WireProblem, advise_buckets, baseline_plans, plan_blocks, step_time_s

    job = _read_job(where)
    problem = WireProblem.from_job(job, num_in_flight=NUM_IN_FLIGHT)
    if not len(problem.num_bytes):
        raise ValueError("no layer of the job has gradients, so there is nothing to put in buckets")
    buckets = advise_buckets(problem)
    plans = [plan_blocks(problem), *baseline_plans(problem)]
    # ScheduledDataParallel executes whole all-reduces.
    scheduled = [step_time_s(problem, plan) for plan in plans if plan.latency_share == 1.0]
    result = {
        "bucket_cap_mb": buckets.bucket_cap_mb,
        "step_s": buckets.step_s,
        "default_step_s": buckets.default_step_s,
        "scheduled_step_s": min(scheduled),
        "bound_s": buckets.bound_s,
        "step_s_of_cap": {str(cap): step_s for cap, step_s in buckets.step_s_of_cap.items()},
        "job": job.source,
        "source": "simulated",
    }
    print(json.dumps(result) if is_json else _table(result))
    return 0


def _table(result: dict[str, Any]) -> str:
    best = result["bucket_cap_mb"]
    rows = [
        f"{cap:>8} {1e3 * step_s:>12.4g}{'  <- best' if int(cap) == best else ''}"
        for cap, step_s in result["step_s_of_cap"].items()
    ]
    return "\n".join(
        [
            f"DistributedDataParallel(..., bucket_cap_mb={best}); times are simulated from a "
            f"job that is {result['job']}",
            "",
            f"{'size, MB':>8} {'step, ms':>12}",
            *rows,
            "",
            f"{1e3 * result['default_step_s']:.4g} ms with the default of 25 MB, "
            f"{1e3 * result['scheduled_step_s']:.4g} ms with ScheduledDataParallel, "
            f"{1e3 * result['bound_s']:.4g} ms at best with any schedule",
        ]
    )


def _read_job(where: str) -> "Job":
    if where.endswith(".json") or Path(where).is_file():
        return _job_in_file(Path(where))
    module, colon, name = where.partition(":")
    if not (module and colon and name):
        raise ValueError(f"buckets needs {JOB}, got {where!r}")
    return _job_in_module(module, name)


def _job_in_file(path: Path) -> "Job":
    from paceline._files import read_json
    from paceline.cost import Job, LayerCost, Link

    content = read_json(path)
    try:
        source = content["source"]
        _check_limits(content)
        return Job(
            source=source,
            layers=tuple(LayerCost(**layer) for layer in content["layers"]),
            link=Link(**content["link"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not hold a job ({type(error).__name__}: {told(error)}); it needs "
            "source, layers, each with name, forward_s, backward_s and gradient_bytes, and a link "
            "with alpha_s and bytes_per_s"
        ) from None


def _check_limits(content: Any) -> None:
    """Raise a `ValueError` for more than any job has: it would be planned for hours, or overflow.

    What is no job at all raises a `KeyError` or a `TypeError`.
    """
    layers = content["layers"]
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"layers must be at most {MAX_LAYERS}, got {len(layers)}")
    for values in (*layers, content["link"]):
        for name, most in MAX_OF.items():
            if values.get(name, 0) > most:
                raise ValueError(f"{name} must be at most {most:g}, got {shown(values[name])}")


def _job_in_module(module: str, name: str) -> "Job":
    from paceline.cost import Job

    # An installed command does not look into the current folder by itself.
    sys.path.insert(0, "")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {module}:{name}: {error}; pass {JOB}") from None
    finally:
        sys.path.remove("")
    job = found() if callable(found) else found
    if not isinstance(job, Job):
        raise ValueError(f"{module}:{name} must be a paceline.Job, got {type(job).__name__}")
    return job
