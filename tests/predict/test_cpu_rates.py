from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.predict.cpu._fit import fit_cpu_rates
from paceline.predict.cpu._rates import CpuRates, OperatorTiming, StepTiming
from paceline.predict.work._workload import OperatorWork, Workload

RATE, BANDWIDTH, FIXED_S = 5e10, 1e10, 2e-6


def matmul(m: int, k: int, n: int, **changes: Any) -> OperatorWork:
    settings: dict[str, Any] = {
        "operator": "mm",
        "operator_class": "matmul",
        "phase": "forward",
        "flops": 2.0 * m * k * n,
        "read_bytes": 4.0 * (m * k + k * n),
        "written_bytes": 4.0 * m * n,
        "dims": (1, m, k, n),
    }
    return OperatorWork(**(settings | changes))


def add(num: int, phase: Any = "backward", operator: str = "add") -> OperatorWork:
    return OperatorWork(
        operator=operator,
        operator_class="elementwise",
        phase=phase,
        flops=0.0,
        read_bytes=8.0 * num,
        written_bytes=4.0 * num,
    )


def true_s(work: OperatorWork) -> float:
    moved = work.read_bytes + work.written_bytes
    return FIXED_S + work.flops / RATE + (moved / BANDWIDTH if not work.flops else 0.0)


def step(*operators: OperatorWork, calls: int = 0) -> Workload:
    return Workload(
        family="MLP",
        batch_size=1,
        num_params=0,
        forward_flops_per_example=1.0,
        operators=operators,
        num_python_calls=calls,
    )


SIZES = [2**power for power in range(4, 11)]
OPERATORS = [
    *(matmul(m, k, 64) for m in SIZES for k in SIZES),
    *(add(size * size) for size in SIZES),
]
TIMINGS = [OperatorTiming(work, true_s(work)) for work in OPERATORS]


def test_a_machine_that_follows_the_model_is_found_out() -> None:
    rates = fit_cpu_rates(TIMINGS)
    for work in (matmul(100, 300, 64), matmul(1000, 77, 64), add(12345), add(900_000)):
        assert rates.operator_s(work) == pytest.approx(true_s(work), rel=1e-3)


def test_calls_cost_what_steps_take_beyond_their_operators() -> None:
    call_s, steps = 1e-5, []
    for count in range(1, 9):
        work = step(*OPERATORS[: 7 * count : 3], calls=3 * count + count % 3)
        seconds = sum(true_s(op) for op in work.operators) + call_s * work.num_python_calls
        steps.append(StepTiming(work, seconds))
    rates = fit_cpu_rates(TIMINGS, steps)
    found = [rates.step_time(one.workload) for one in steps]
    for estimate, one in zip(found, steps, strict=True):
        assert estimate.median == pytest.approx(one.seconds, rel=0.05)
        assert estimate.low <= estimate.median <= estimate.high


def of_another_model(number: int, rng: np.random.Generator) -> StepTiming:
    """A step of a model whose operators all take longer, or less, than those of others."""
    chosen = rng.choice(len(OPERATORS), 10, replace=False)
    work = step(*(OPERATORS[index] for index in chosen))
    seconds = sum(true_s(one) for one in work.operators) * rng.lognormal(0.0, 0.2)
    return StepTiming(work, float(seconds), str(number))


def test_intervals_hold_for_models_that_were_not_calibrated_on() -> None:
    rng = np.random.default_rng(0)
    rates = fit_cpu_rates(TIMINGS, [of_another_model(number, rng) for number in range(30)])
    new = [of_another_model(number, rng) for number in range(400)]
    found = [rates.step_time(one.workload) for one in new]
    inside = [e.low <= one.seconds <= e.high for e, one in zip(found, new, strict=True)]
    assert 0.85 <= np.mean(inside) <= 0.98


def test_the_operators_of_a_model_are_left_out_with_its_steps() -> None:
    # Each model has its own kind of operator, twice as slow or fast as the class beside it:
    # fitted on itself every model would be exact.
    operators, steps = list(TIMINGS), []
    for number, factor in enumerate((0.5, 2.0, 0.5, 2.0)):
        own = [add(size * size, operator=f"own{number}") for size in SIZES]
        operators += [OperatorTiming(one, factor * true_s(one), str(number)) for one in own]
        seconds = sum(factor * true_s(one) for one in own)
        steps.append(StepTiming(step(*own), seconds, str(number)))
    rates = fit_cpu_rates(operators, steps)
    assert rates.step_time(steps[0].workload).median == pytest.approx(steps[0].seconds, rel=0.05)
    low, high = rates.log_offsets
    assert low < np.log(0.6)
    assert high > np.log(1.6)


def test_a_model_that_alone_runs_a_class_says_nothing_about_others() -> None:
    strange = OperatorWork(
        operator="lstm",
        operator_class="recurrent",
        phase="forward",
        flops=1e6,
        read_bytes=1e4,
        written_bytes=1e4,
        dims=(4, 8, 16),
    )
    steps = [StepTiming(step(add(10_000), add(20_000)), 2e-5, "plain")]
    steps.append(StepTiming(step(strange), 1e-3, "strange"))
    rates = fit_cpu_rates([*TIMINGS, OperatorTiming(strange, 1e-3, "strange")], steps)
    assert np.isfinite(rates.log_offsets).all()


def test_an_unknown_operator_falls_back_to_its_class() -> None:
    rates = fit_cpu_rates(TIMINGS)
    strange = add(50_000, operator="brand_new")
    assert rates.operator_s(strange) == pytest.approx(true_s(strange), rel=1e-3)


def test_a_class_that_was_never_measured_is_named() -> None:
    work = OperatorWork(
        operator="scaled_dot_product",
        operator_class="attention",
        phase="forward",
        flops=1.0,
        read_bytes=1.0,
        written_bytes=1.0,
    )
    with pytest.raises(ValueError, match="class 'attention' were not calibrated; known kinds"):
        fit_cpu_rates(TIMINGS).operator_s(work)


def test_views_cost_nothing_but_are_taken_off_the_others() -> None:
    view = OperatorWork(
        operator="view",
        operator_class="view",
        phase="forward",
        flops=0.0,
        read_bytes=0.0,
        written_bytes=0.0,
    )
    late = [OperatorTiming(t.work, t.seconds + 4e-6) for t in TIMINGS]
    rates = fit_cpu_rates([*late, OperatorTiming(view, 4e-6)])
    assert rates.operator_s(view) == 0.0
    assert rates.operator_s(add(12345)) == pytest.approx(true_s(add(12345)), rel=1e-3)


def test_more_work_never_takes_less_time() -> None:
    noisy = np.random.default_rng(0)
    rates = fit_cpu_rates(
        OperatorTiming(t.work, t.seconds * noisy.lognormal(0.0, 0.3)) for t in TIMINGS
    )
    seconds = [rates.operator_s(matmul(size, size, size)) for size in SIZES]
    assert seconds == sorted(seconds)
    assert min(seconds) >= 0


def test_rates_survive_a_file(tmp_path: Path) -> None:
    rates = fit_cpu_rates(TIMINGS, machine={"processor": "a"})
    rates.save(tmp_path / "rates.json")
    again = CpuRates.load(tmp_path / "rates.json")
    work = step(*OPERATORS)
    assert again.step_time(work) == rates.step_time(work)
    assert again.machine == {"processor": "a"}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_file_that_holds_no_rates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="holds no CPU rates"):
        CpuRates.load(path)


def test_a_step_without_operators_is_refused() -> None:
    with pytest.raises(ValueError, match="trace the model at this batch size"):
        fit_cpu_rates(TIMINGS).step_time(step())


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no timed operators"):
        fit_cpu_rates([])


def test_parts_add_up_to_the_step() -> None:
    rates = fit_cpu_rates(TIMINGS)
    work = step(*OPERATORS)
    parts = rates.seconds_by_class(work)
    assert sum(parts.values()) == pytest.approx(rates.step_time(work).median)
    assert [name for name, _ in rates.bounds(work)] == ["compute", "memory", "launch"]
