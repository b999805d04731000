from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict.step._calibration import HeldOut, held_out_predictions
from paceline.predict.step._loader import LoaderRates, fit_loader_rates
from paceline.predict.step._probe import (
    ProbeKernel,
    by_device_and_family,
    calibrate_probed,
    fit_probe_kernel,
    probe_trial,
    probed_logs,
)
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    """Devices whose hosts differ by a factor that no data sheet tells."""
    folder: Path = tmp_path_factory.mktemp("tables")
    write_table(folder / "mlp.csv", mlp_rows())
    rows = read_step_tables(folder)
    hidden = {"T4": 1.6, "L4": 0.7, "V100 SXM2 16GB": 1.2, "H100 PCIe 80GB": 0.8}
    factor = np.array([hidden[name] for name in rows["device"]])
    changed = {name: factor * rows[name] for name in ("compute_s", "loader_s")}
    return held_out_predictions(StepRows({**rows.columns, **changed}), "device")


@pytest.fixture(scope="module")
def kernel(held_out: HeldOut) -> ProbeKernel:
    return fit_probe_kernel(held_out)


@pytest.fixture(scope="module")
def loader(held_out: HeldOut) -> LoaderRates:
    return fit_loader_rates(held_out.rows)


def error(part: HeldOut, quantity: str) -> float:
    return float(np.abs(np.expm1(-part.residuals(quantity))).mean())


def trials(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates, num: int, quantity: str
) -> float:
    """Mean relative error over devices and ten draws of probes, on rows never probed."""
    errors = []
    for part in by_device_and_family(held_out):
        for draw in range(10):
            trial = probe_trial(part, kernel, loader, num, np.random.default_rng(draw))
            errors.append(error(trial, quantity))
    return float(np.mean(errors))


def test_one_probe_does_not_hurt_on_average_and_more_help_more(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> None:
    for quantity in ("compute", "total"):
        found = [trials(held_out, kernel, loader, num, quantity) for num in (0, 1, 3, 10)]
        assert found[1] <= found[0]
        assert found[3] <= found[1]
    assert found[3] < 0.5 * found[0]


def test_without_probes_nothing_changes(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> None:
    part, none = held_out.take(np.arange(5)), held_out.take(np.arange(0))
    assert probed_logs(part.rows, part.logs, none, kernel, loader) is part.logs


def test_a_probe_of_the_same_configuration_counts_most(held_out: HeldOut) -> None:
    part = next(by_device_and_family(held_out))
    kernel = ProbeKernel()
    probe = part.take(np.arange(1))
    shift = np.abs(
        probed_logs(part.rows, part.logs, probe, kernel, LoaderRates({})).compute
        - part.logs.compute
    )
    assert shift[0] == pytest.approx(shift.max())
    assert (shift <= abs(probe.residuals("compute")[0])).all()


def test_a_trial_never_scores_what_it_probed(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> None:
    part = next(by_device_and_family(held_out))
    trial = probe_trial(part, kernel, loader, 10, np.random.default_rng(0))
    assert len(trial.rows) == len(part.rows) - 10
    assert set(trial.rows["compute_s"]) < set(part.rows["compute_s"])


def test_rates_of_the_probed_device_itself_are_not_looked_at(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> None:
    part = next(by_device_and_family(held_out))
    name = str(part.rows["device"][0])
    spoiled = LoaderRates(
        {k: 1e-2 if k.startswith(name) else rate for k, rate in loader.seconds.items()}
    )
    rng = np.random.default_rng
    first = probe_trial(part, kernel, loader, 5, rng(0))
    second = probe_trial(part, kernel, spoiled, 5, rng(0))
    np.testing.assert_array_equal(first.logs.total, second.logs.total)


def test_intervals_narrow_with_probes(
    held_out: HeldOut, kernel: ProbeKernel, loader: LoaderRates
) -> None:
    widths = []
    for num in (1, 10):
        offsets = calibrate_probed(held_out, kernel, loader, num)["compute"]["MLP"]
        widths.append(offsets.high - offsets.low)
    assert widths[1] < widths[0]
