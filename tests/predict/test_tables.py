from pathlib import Path

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict.step import _time
from paceline.predict.step._boost import BoostConfig
from paceline.predict.step._features import feature_matrix
from paceline.predict.step._roofline import fit_roofline
from paceline.predict.step._rows import StepRows, concatenate
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import fit_step_models

# Columns that hold, or are computed from, what is to be predicted.
FORBIDDEN = {
    "avg_batch_time_ms",
    "p90_batch_time_ms",
    "loader_wait_ms",
    "avg_loader_ms",
    "compute_ms",
    "avg_compute_ms",
    "loader_ratio",
    "examples_per_sec",
}


@pytest.fixture
def rows(tmp_path: Path) -> StepRows:
    write_table(tmp_path / "mlp.csv", mlp_rows())
    return read_step_tables(tmp_path)


def test_columns_come_in_seconds_flops_and_bytes(rows: StepRows, tmp_path: Path) -> None:
    first = mlp_rows()[0]
    assert rows["compute_s"][0] == pytest.approx(float(str(first["avg_compute_ms"])) / 1e3)
    assert rows.total_s[0] == pytest.approx(float(str(first["avg_batch_time_ms"])) / 1e3)
    assert rows["train_flops_per_example"][0] == pytest.approx(3 * 2e8)
    assert rows["example_bytes"][0] == 3 * 96 * 96
    assert rows["memory_bytes_per_s"][0] == 320e9


def test_devices_are_named_as_in_the_device_table(rows: StepRows) -> None:
    assert set(rows["device"]) == {"T4", "V100 SXM2 16GB", "L4", "H100 PCIe 80GB"}
    v100 = rows["device"] == "V100 SXM2 16GB"
    assert (rows["tensor_flops"][v100] == 125e12).all()


def test_a_gpu_that_nobody_described_counts_as_one_without_matrix_units(tmp_path: Path) -> None:
    table = [{**row, "gpu_name": "Foo 77"} for row in mlp_rows()]
    write_table(tmp_path / "mlp.csv", table)
    rows = read_step_tables(tmp_path)
    assert set(rows["device"]) == {"Foo 77"}
    np.testing.assert_array_equal(rows["tensor_flops"], rows["fp16_flops"])


def test_several_files_and_a_folder_named_step_time_are_read(tmp_path: Path) -> None:
    (tmp_path / "step_time").mkdir()
    for name in ("a.csv", "b.csv"):
        write_table(tmp_path / "step_time" / name, mlp_rows()[:5])
    assert len(read_step_tables(tmp_path)) == 10


@pytest.mark.parametrize("column", ["depth", "input_shape", "gpu_name", "FP16"])
def test_a_missing_column_is_named_with_its_file(tmp_path: Path, column: str) -> None:
    table = [{k: v for k, v in row.items() if k != column} for row in mlp_rows()]
    write_table(tmp_path / "mlp.csv", table)
    with pytest.raises(ValueError, match=rf"mlp.csv lacks the columns {column}"):
        read_step_tables(tmp_path)


def test_times_may_have_either_name_but_must_be_there(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if k != "avg_compute_ms"} for row in mlp_rows()]
    write_table(tmp_path / "mlp.csv", table)
    with pytest.raises(ValueError, match="compute_ms or avg_compute_ms"):
        read_step_tables(tmp_path)
    renamed = [{**row, "compute_ms": 7.0} for row in table]
    write_table(tmp_path / "mlp.csv", renamed)
    assert read_step_tables(tmp_path)["compute_s"][0] == 0.007


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("avg_compute_ms", "nan", "compute_s must be finite"),
        ("batch_size", "0", "batch_size must be finite and positive"),
        ("depth", "many", "column depth"),
        ("input_shape", "square", "input_shape must hold shapes"),
        ("architecture", "GNN", "architecture must say one of CNN, MLP, Transformer"),
    ],
)
def test_a_bad_value_is_refused_with_the_file(
    tmp_path: Path, column: str, value: str, message: str
) -> None:
    table = mlp_rows()
    table[0] = {**table[0], column: value}
    write_table(tmp_path / "mlp.csv", table)
    with pytest.raises(ValueError, match=rf"mlp.csv: .*{message}"):
        read_step_tables(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*.csv file"):
        read_step_tables(tmp_path)


def test_no_measured_time_reaches_a_feature_or_a_prediction(
    rows: StepRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of the rows to predict may be anything, or missing, and nothing changes."""
    for name in ("TOTAL", "COMPUTE", "MEMBER"):
        monkeypatch.setattr(_time, name, BoostConfig(num_trees=20))
    rng = np.random.default_rng(0)
    noise = {name: rng.uniform(1, 2, len(rows)) for name in ("compute_s", "loader_s")}
    scrambled = StepRows({**rows.columns, **noise})
    for one, other in zip(feature_matrix(rows), feature_matrix(scrambled), strict=True):
        np.testing.assert_array_equal(one, other)
    models, bare = fit_step_models(rows), rows.without_times()
    assert not bare.is_measured
    for shift in ("known", "model", "device"):
        expected = models.logs(bare, shift)
        for given in (rows, scrambled):
            np.testing.assert_array_equal(models.logs(given, shift).total, expected.total)


def test_forbidden_columns_are_read_as_the_answer_or_not_at_all(tmp_path: Path) -> None:
    """What is computed from the time may be garbage without a trace in work and device."""
    answers = {"avg_loader_ms", "avg_compute_ms", "loader_wait_ms", "compute_ms"}
    garbage = dict.fromkeys(FORBIDDEN - answers, "garbage")
    write_table(tmp_path / "a.csv", mlp_rows())
    clean = read_step_tables(tmp_path)
    write_table(tmp_path / "a.csv", [{**garbage, **row, **_doubled(row)} for row in mlp_rows()])
    spoiled = read_step_tables(tmp_path)
    for name, column in clean.without_times().columns.items():
        np.testing.assert_array_equal(column, spoiled[name])
    np.testing.assert_allclose(spoiled.total_s, 2 * clean.total_s)


def _doubled(row: dict[str, object]) -> dict[str, object]:
    answers = {name: 2 * float(str(row[name])) for name in ("avg_loader_ms", "avg_compute_ms")}
    return {**answers, "avg_batch_time_ms": "garbage"}


def test_names_of_models_and_datasets_do_not_matter_for_compute(rows: StepRows) -> None:
    renamed = StepRows(
        {**rows.columns, "model": np.full(len(rows), "x"), "variant": np.full(len(rows), "y")}
    )
    models = fit_step_models(rows, ("model",))
    np.testing.assert_array_equal(
        models.logs(rows, "model").compute, models.logs(renamed, "model").compute
    )
    np.testing.assert_array_equal(
        fit_roofline(rows).predict(rows).total, fit_roofline(renamed).predict(rows).total
    )


@pytest.mark.parametrize("change", ["drop", "unknown", "length", "half of the times"])
def test_rows_check_their_columns(rows: StepRows, change: str) -> None:
    columns = dict(rows.columns)
    if change == "drop":
        del columns["depth"]
    elif change == "unknown":
        columns["p90_batch_time_ms"] = columns["depth"]
    elif change == "length":
        columns["depth"] = columns["depth"][:-1]
    else:
        del columns["loader_s"]
    with pytest.raises(ValueError, match=r"step rows lack|one length"):
        StepRows(columns)


def test_concatenation_wants_all_measured_or_none(rows: StepRows) -> None:
    assert len(concatenate([rows, rows])) == 2 * len(rows)
    with pytest.raises(ValueError, match="all measured or none"):
        concatenate([rows, rows.without_times()])
