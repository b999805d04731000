import json
from pathlib import Path

import pytest

from paceline.cli import main

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> int:
    try:
        return main(["collect", "net.py:build", "--output", "mine.csv", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_second_call_measures_only_what_is_new(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--input-shape", "3,8,8", "--steps", "1", "--json")
    assert run("--batch", "2", *flags) == 0
    assert json.loads(capsys.readouterr().out) == {"table": "mine.csv", "measured": 1, "kept": 0}
    assert run("--batch", "2,4", *flags) == 0
    assert json.loads(capsys.readouterr().out) == {"table": "mine.csv", "measured": 1, "kept": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "two"], "batch must hold whole numbers"),
        (["--batch", "0"], "batch sizes must be at least 1"),
        (["--batch", "2", "--steps", "0"], "steps must be at least 1"),
        (["--batch", "2", "--precision", "8"], "precision must be 32"),
        (["--batch", "2", "--device", "tpu"], "device must be cpu"),
        (["--batch", "2", "--optimizer", "magic"], "optimizer must be a class of torch.optim"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("--input-shape", "3,8,8", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("mine.csv").exists()
