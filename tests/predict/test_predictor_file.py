import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.predict.step_tables import mlp_rows, write_table

from paceline.errors import StateMismatchError
from paceline.predict.step import Execution, LoaderProbe, StepEstimate
from paceline.predict.step._predictor import StepPredictor, fit_step_predictor
from paceline.predict.step._predictor_file import load_step_predictor, save_step_predictor
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables

SHIFTS = ("model", "device")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> StepRows:
    folder: Path = tmp_path_factory.mktemp("tables")
    write_table(folder / "mlp.csv", mlp_rows())
    return read_step_tables(folder)


@pytest.fixture(scope="module")
def predictor(rows: StepRows) -> StepPredictor:
    return fit_step_predictor(rows, shifts=SHIFTS, provenance={"tables": "made up"})


@pytest.fixture
def file(predictor: StepPredictor, tmp_path: Path) -> Path:
    path = tmp_path / "predictor.json"
    save_step_predictor(predictor, path)
    return path


def test_a_loaded_predictor_predicts_the_same(
    file: Path, predictor: StepPredictor, rows: StepRows
) -> None:
    loaded = load_step_predictor(file)
    for shift in SHIFTS:
        assert loaded.predict(rows, shift=shift) == predictor.predict(rows, shift=shift)
    probes = rows.take(rows["device"] == "T4").take(np.arange(4))
    assert loaded.with_probes(probes).predict(rows, shift="model") == predictor.with_probes(
        probes
    ).predict(rows, shift="model")
    assert loaded.provenance["tables"] == "made up"
    assert "held out; model: MLP " in loaded.provenance["held_out"]


def test_the_file_is_small_json_without_rows(file: Path, rows: StepRows) -> None:
    text = file.read_text()
    assert len(text) < 5_000_000
    json.loads(text)
    assert not [value for value in rows["compute_s"] if repr(float(value)) in text]


def test_saving_twice_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    save_step_predictor(load_step_predictor(file), again)
    assert again.read_bytes() == file.read_bytes()


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document[key] = value

    return change


def _tamper(document: dict[str, Any]) -> None:
    document["content"]["loader"]["T4|MLP|STL10"] = 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_tamper, "does not match its sha256"),
        (_set("sha256", "0" * 64), "does not match its sha256"),
        (_set("content", []), "does not match its sha256"),
        (_set("version", 99), "has version 99, but this Paceline reads version 2"),
        (_set("format", "something else"), "is not a paceline step predictor file"),
    ],
)
def test_a_file_that_was_changed_is_refused(
    file: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(StateMismatchError, match=message):
        load_step_predictor(file)


def test_a_file_cut_short_is_refused(file: Path) -> None:
    file.write_text(file.read_text()[:1000])
    with pytest.raises(StateMismatchError, match="is not JSON"):
        load_step_predictor(file)


def test_all_that_is_new_is_named_and_widens_the_interval(
    predictor: StepPredictor, rows: StepRows
) -> None:
    one = rows.take([0]).without_times()
    new_model = StepRows({**one.columns, "model": np.array(["mine"])})
    new_device = StepRows({**new_model.columns, "device": np.array(["Foo 77"])})
    all_new = StepRows({**new_device.columns, "dataset": np.array(["pictures"])})
    found = [predictor.predict(row)[0] for row in (new_model, new_device, all_new)]
    assert [one.shift for one in found] == ["host+model", "device+model", "device+dataset+model"]
    assert found[2].new == "the device, the dataset and the model"
    (held,) = predictor.predict(new_model, shift="model")
    assert width(found[0]) > width(held)  # the user's host is not the one of the tables
    (joint,) = predictor.predict(new_device, shift="device")
    assert width(found[1]) > width(joint)
    with pytest.raises(ValueError, match="no intervals for shift 'configuration'"):
        predictor.predict(one)


def width(estimate: StepEstimate) -> float:
    return float(np.log(estimate.compute.high / estimate.compute.low))


def test_another_execution_changes_the_step_and_widens_it(
    predictor: StepPredictor, rows: StepRows
) -> None:
    row = rows.take((rows["precision_bits"] == 32) & (rows["batch_size"] == 128)).take([0])
    row = StepRows({**row.columns, "device": np.array(["H100 PCIe 80GB"])}).without_times()
    (plain,) = predictor.predict(row, shift="model")
    same, again = (
        predictor.predict(row, shift="model", execution=execution)[0]
        for execution in (Execution(precision="fp32"), Execution(precision="fp32", micro_batches=4))
    )
    assert same == plain
    assert again.compute.median > plain.compute.median
    assert width(again) > width(plain)
    with pytest.raises(ValueError, match="precision amp needs rows of 16 bits, but row 0 has 32"):
        predictor.predict(row, execution=Execution(precision="amp"))


def test_a_timed_loader_stands_in_for_that_of_the_tables(
    predictor: StepPredictor, rows: StepRows
) -> None:
    row = rows.take([0]).without_times()
    (plain,) = predictor.predict(row, shift="model")
    slow = LoaderProbe(seconds_per_example=1.0, num_workers=4, num_cores=8)
    (waits,) = predictor.predict(row, shift="model", loader=slow)
    assert waits.compute == plain.compute
    assert waits.step.median == waits.loader.median == row["batch_size"][0]
    four = Execution(precision="fp32", micro_batches=4)
    bits = StepRows({**row.columns, "precision_bits": np.array([32.0])})
    (longer,) = predictor.predict(bits, shift="model", loader=slow, execution=four)
    assert longer.loader.median == 4 * waits.loader.median
    (serial,) = predictor.predict(row, shift="model", loader=replace(slow, num_workers=0))
    assert serial.step.median == pytest.approx(waits.step.median + plain.compute.median)


def test_probes_pull_estimates_of_their_device_and_of_no_other(
    predictor: StepPredictor, rows: StepRows
) -> None:
    mine = StepRows(
        {**rows.columns, "device": np.where(rows["device"] == "T4", "Foo 77", rows["device"])}
    )
    own = mine.take(mine["device"] == "Foo 77")
    slow = StepRows({**own.columns, "compute_s": 2 * own["compute_s"]})
    probed = predictor.with_probes(slow.take(np.arange(0, len(own), 4)))
    other = mine.take(mine["device"] == "L4")
    assert probed.predict(other, shift="model") == predictor.predict(other, shift="model")
    before = np.array([e.compute.median for e in predictor.predict(own)])
    after = np.array([e.compute.median for e in probed.predict(own)])
    truth = slow["compute_s"]
    assert np.abs(np.log(after / truth)).mean() < 0.5 * np.abs(np.log(before / truth)).mean()


def test_probes_need_times(predictor: StepPredictor, rows: StepRows) -> None:
    with pytest.raises(ValueError, match="probes must carry"):
        predictor.with_probes(rows.without_times())


def test_estimates_are_in_order_and_a_step_is_no_shorter_than_its_parts(
    predictor: StepPredictor, rows: StepRows
) -> None:
    for estimate in predictor.predict(rows, shift="model"):
        assert estimate.step.low <= estimate.step.median <= estimate.step.high
        assert estimate.loader.low <= estimate.loader.median <= estimate.loader.high
