import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paceline.predict.step._tables import read_step_tables
from paceline.torch.predict._collect import CollectConfig, collect_steps


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rnn(x)[0]


def config(**changes: Any) -> CollectConfig:
    settings: dict[str, Any] = {
        "name": "net",
        "batch_sizes": (2, 4),
        "precisions": (32, 16),
        "num_steps": 2,
        "dataset": "noise",
        "dataset_size": 100,
        "num_classes": 10,
    }
    return CollectConfig(**(settings | changes))


def run(table: Path, chosen: CollectConfig) -> list[bool]:
    made = collect_steps(convnet, None, chosen, table, input_shape=(3, 8, 8))
    return [is_new for _, is_new in made]


def test_a_table_is_made_goes_on_and_can_be_read(tmp_path: Path) -> None:
    table = tmp_path / "deep" / "mine.csv"
    first = collect_steps(convnet, None, config(), table, input_shape=(3, 8, 8))
    assert next(first)[1]
    first.close()
    assert len(list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))) == 1
    assert run(table, config()) == [False, True, True, True]
    assert run(table, config(optimizers=("SGD", "AdamW"))) == [False] * 4 + [True] * 4
    rows = read_step_tables(table.parent)
    assert len(rows) == 8
    assert (rows["compute_s"] > 0).all()
    assert set(rows["precision_bits"]) == {16.0, 32.0}
    assert not list(table.parent.glob("*.partial"))


def test_a_family_without_tables_is_refused(tmp_path: Path) -> None:
    made = collect_steps(Recurs, torch.zeros(1, 3, 8), config(), tmp_path / "mine.csv")
    with pytest.raises(ValueError, match="tables are of CNN, MLP, Transformer"):
        next(made)


def test_a_strange_file_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is no table of collect"):
        run(table, config())
    assert table.read_text(encoding="utf-8") == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": (0,)}, "batch sizes must be at least 1"),
        ({"batch_sizes": ()}, "batch sizes must be at least 1"),
        ({"num_steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_a_bad_config_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be cpu, or cuda where PyTorch sees a GPU"):
        run(tmp_path / "mine.csv", config(device="tpu"))
