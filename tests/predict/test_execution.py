from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict import Device
from paceline.predict.step import Execution, StepRows
from paceline.predict.step._rates import conv_rate_32, rate_16
from paceline.predict.step._roofline import LAUNCH_PRIOR, WORK_PRIOR, Roofline, fit_roofline
from paceline.predict.step._tables import read_step_tables

NEW_DEVICE = ("fp32_flops", "fp16_flops", "tensor_flops", "memory_bytes_per_s", "num_cores",
              "num_sms", "num_tensor_cores", "boost_clock_hz", "fp8_flops")  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> StepRows:
    folder: Path = tmp_path_factory.mktemp("tables")
    write_table(folder / "mlp.csv", mlp_rows())
    return read_step_tables(folder)


@pytest.fixture(scope="module")
def fit(rows: StepRows) -> Roofline:
    return fit_roofline(rows, known_hosts=False)


def of_bits(rows: StepRows, bits: int, device: str) -> StepRows:
    """Large steps of one precision as if on another device."""
    some = rows.take((rows["precision_bits"] == bits) & (rows["batch_size"] == 128))
    there = {name: np.full(len(some), getattr(Device.named(device), name)) for name in NEW_DEVICE}
    work = {name: 5000.0 * some[name] for name in ("train_flops_per_example",)}
    return StepRows({**some.columns, **there, **work})


@pytest.mark.parametrize(
    ("bits", "device", "execution", "sign"),
    [
        (32, "A100 PCIe 80GB", Execution(precision="fp32"), 0),
        (16, "A100 PCIe 80GB", Execution(precision="amp"), 0),
        (32, "A100 PCIe 80GB", Execution(precision="tf32"), -1),
        (32, "T4", Execution(precision="tf32"), 0),
        (16, "H100 PCIe 80GB", Execution(precision="bf16"), -1),
        (16, "H100 SXM5 80GB", Execution(precision="fp8"), -1),
        (16, "H100 PCIe 80GB", Execution(precision="amp", compiled=True), -1),
        (16, "H100 PCIe 80GB", Execution(precision="amp", micro_batches=4), 1),
        (16, "H100 PCIe 80GB", Execution(precision="amp", checkpointing=True), 1),
        (16, "T4", Execution(precision="amp", sharding="optimizer", num_shards=8), -1),
        (16, "T4", Execution(precision="amp", num_shards=8), 0),
    ],
)
def test_an_execution_moves_the_step_where_it_should(
    rows: StepRows, fit: Roofline, bits: int, device: str, execution: Execution, sign: int
) -> None:
    there = of_bits(rows, bits, device)
    change = fit.predict(there, execution).total - fit.predict(there).total
    assert (np.sign(np.round(change, 12)) == sign).all()


def test_checkpointing_costs_at_most_a_third(rows: StepRows, fit: Roofline) -> None:
    there = of_bits(rows, 16, "T4")
    again = fit.predict(there, Execution(precision="amp", checkpointing=True)).total
    assert (again - fit.predict(there).total <= np.log(4 / 3) + 1e-9).all()


def test_channels_last_is_for_convolutions_in_16_bits(rows: StepRows, fit: Roofline) -> None:
    last = {bits: Execution(precision=name, channels_last=True) for bits, name in
            ((16, "amp"), (32, "fp32"))}  # fmt: skip
    for bits, conv, faster in ((16, 1.0, True), (16, 0.0, False), (32, 1.0, False)):
        there = of_bits(rows, bits, "T4")
        there = StepRows({**there.columns, "conv_fraction": np.full(len(there), conv)})
        change = fit.predict(there, last[bits]).total - fit.predict(there).total
        assert (change < 0).all() == faster


def test_factors_name_terms_of_the_roofline(rows: StepRows) -> None:
    names = set(Execution(precision="amp").factors(rows))
    assert names <= set(LAUNCH_PRIOR) | set(WORK_PRIOR)


def test_the_rate_in_16_bits_is_no_lower_without_matrix_units(rows: StepRows) -> None:
    for device, expected in (("P4", 5.704e12), ("P100", 19.05e12), ("T4", 65e12)):
        assert rate_16(of_bits(rows, 16, device))[0] == pytest.approx(expected)


def test_tf32_is_for_devices_whose_matrix_units_have_it(rows: StepRows) -> None:
    rate = conv_rate_32(rows)
    for name, expected in (("V100 SXM2 16GB", 15.67e12), ("H100 PCIe 80GB", 378e12)):
        assert rate[rows["device"] == name][0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int4"}, "precision must be one of fp32, tf32"),
        ({"sharding": "zero-9"}, "sharding must be one of none"),
        ({"micro_batches": 0}, "must be at least 1"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Execution(**{"precision": "amp", **change})  # type: ignore[arg-type]
