from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict.step._roofline import (
    LAUNCH_PRIOR,
    WORK_PRIOR,
    _numbered,
    _Problem,
    _terms,
    fit_roofline,
    host_names,
)
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables


@pytest.fixture
def rows(tmp_path: Path) -> StepRows:
    write_table(tmp_path / "mlp.csv", mlp_rows())
    return read_step_tables(tmp_path)


def mape(rows: StepRows, log_seconds: np.ndarray) -> float:
    return float(100 * np.abs(np.exp(log_seconds) / rows["compute_s"] - 1).mean())


def test_the_fit_finds_times_that_follow_a_roofline(rows: StepRows) -> None:
    assert mape(rows, fit_roofline(rows).predict(rows).total) < 12


def test_a_device_with_faster_units_and_memory_is_not_slower(rows: StepRows) -> None:
    fit = fit_roofline(rows, known_hosts=False)
    names = ("fp32_flops", "fp16_flops", "tensor_flops", "memory_bytes_per_s", "boost_clock_hz")
    faster = StepRows({**rows.columns, **{name: 2 * rows[name] for name in names}})
    assert (fit.predict(faster).total <= fit.predict(rows).total + 1e-12).all()


@pytest.mark.parametrize("name", ["batch_size", "num_params", "num_kernels"])
def test_more_work_takes_no_less_time(rows: StepRows, name: str) -> None:
    fit = fit_roofline(rows)
    more = StepRows({**rows.columns, name: 2 * rows[name]})
    assert (fit.predict(more).total >= fit.predict(rows).total - 1e-12).all()


def test_a_slow_host_shows_in_its_factor(rows: StepRows) -> None:
    slow = rows["device"] == "T4"
    times = np.where(slow, 2.0, 1.0) * rows["compute_s"]
    before = fit_roofline(rows)
    after = fit_roofline(StepRows({**rows.columns, "compute_s": times}))
    assert after.host_launch["T4|MLP"] > before.host_launch["T4|MLP"] + 0.2


def test_without_known_hosts_no_name_of_a_device_matters(rows: StepRows) -> None:
    fit = fit_roofline(rows, known_hosts=False)
    assert not fit.host_launch
    assert not fit.device_work


def test_the_total_lies_between_the_larger_part_and_the_sum(rows: StepRows) -> None:
    physics = fit_roofline(rows).predict(rows)
    assert (physics.total >= np.maximum(physics.launch, physics.work) - 1e-12).all()
    assert (physics.total <= np.logaddexp(physics.launch, physics.work) + 1e-12).all()
    assert physics.columns().shape == (len(rows), 4)


def test_the_slope_is_the_derivative(rows: StepRows) -> None:
    hosts, host = _numbered(host_names(rows), True)
    devices, device = _numbered(rows["device"].astype(str), True)
    target = np.log(rows["compute_s"])
    problem = _Problem(_terms(rows), target, host, device, len(hosts), len(devices))
    num = len(LAUNCH_PRIOR) + len(WORK_PRIOR)
    theta = np.random.default_rng(0).normal(0, 0.5, num + 1 + len(hosts) + len(devices))
    theta[:num] += np.log([value for value, _ in [*LAUNCH_PRIOR.values(), *WORK_PRIOR.values()]])
    slope = problem._slope(theta, problem._physics(theta))
    for column in range(theta.size):
        step = np.zeros_like(theta)
        step[column] = 1e-6
        up, down = problem._physics(theta + step).total, problem._physics(theta - step).total
        np.testing.assert_allclose(slope[:, column], (up - down) / 2e-6, atol=1e-7)
