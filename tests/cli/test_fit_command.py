import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from paceline.cli import main
from paceline.predict.work._catalogue import Datasets, Devices, Models, catalogue_workload
from paceline.torch.predict._collect_table import described

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
"""
ESTIMATE = ("estimate", "net.py:build", "--batch", "8", "--input-shape", "3,8,8", "--device", "T4")


def rows() -> list[dict[str, Any]]:
    """Return a table of steps whose times follow a simple rule."""
    made = []
    for model, dataset, gpu, size, precision in product(
        (Models.ResNet50, Models.MobileNetV2),
        (Datasets.Cifar10, Datasets.STL10),
        (Devices.T4, Devices.V100, Devices.L4),
        (16, 32, 64),
        (16, 32),
    ):
        work = catalogue_workload(model, dataset, batch_size=size, precision=precision)
        row = described(work, gpu.row, dataset=dataset.value.name, input_shape=(3, 32, 32))
        rate = gpu.row.peak_flops(precision)
        compute_ms = 5.0 + 4e3 * work.train_flops_per_batch / rate
        made.append(row | {"compute_ms": compute_ms, "loader_wait_ms": 0.01 * size})
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write(folder / "cnn.csv", rows())
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, some: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(some[0]))
        writer.writeheader()
        writer.writerows(some)


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_fitted_file_predicts_says_where_it_is_from_and_guards_itself(
    here: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--train", str(tables), "--test", str(tables))
    assert run("fit", *both, "--output", "mine.json", "--source", "made up", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_steps"] == 72
    assert 0 < result["scores"]["compute"]["CNN"]["mape"] < 50
    text = Path("mine.json").read_text(encoding="utf-8")
    provenance = json.loads(text)["content"]["provenance"]
    assert provenance["source"] == "made up"
    assert json.loads(provenance[f"scored on {tables.name}"]) == result["scores"]

    assert run(*ESTIMATE, "--predictor", "mine.json", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["source"]) == ("T4", "predicted")
    assert 1e-4 < found["step_s"]["median"] < 0.05

    Path("changed.json").write_text(text.replace("made up", "made op"), encoding="utf-8")
    assert run(*ESTIMATE, "--predictor", "changed.json") == 2
    assert "changed.json does not match its sha256" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_the_shipped_predictor_serves_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("T4", "MI300X"):
        assert run(*ESTIMATE, "--device", device, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        step = found["step_s"]
        assert 0 < step["low"] <= step["median"] <= step["high"]
        first = "host" if device == "T4" else "device"
        assert found["new_to_predictor"] == f"the {first}, the dataset and the model"


@pytest.mark.usefixtures("here")
def test_missing_columns_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t").mkdir()
    less = [{k: v for k, v in row.items() if k not in ("bn_layers", "FP16")} for row in rows()]
    write(Path("t/cnn.csv"), less)
    assert run("fit", "t", "--output", "mine.json") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cnn.csv lacks the columns FP16, bn_layers" in line
    assert not Path("mine.json").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "a.json"], "tables must be a folder of CSV files, got nowhere"),
        ([".", "--output", "a.json"], "there is no *.csv file"),
        (["--output", "a.json"], "pass one folder of tables"),
        ([".", "--train", ".", "--output", "a.json"], "pass one folder of tables"),
    ],
)
def test_a_folder_without_tables_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("fit", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_missing_predictor_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*ESTIMATE, "--predictor", "gone.json") == 2
    assert "there is no predictor file gone.json; make one with" in capsys.readouterr().err
