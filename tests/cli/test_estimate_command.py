import json
import sys
from pathlib import Path
from typing import Any

import pytest

from paceline.cli import _estimate, main
from paceline.cli._estimate import parse_link
from paceline.cli._estimate_report import _columns
from paceline.cli._model_flags import parse_shape
from paceline.predict.cpu._rates import CpuRates

MODEL = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

class Chooses(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)
    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > 0 else -y

def tokens():
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))

def wrong():
    return 3

NUMBER = 5
"""
RATES = CpuRates(
    coefficients={
        "matmul": (1e-6, 1e-10),
        "elementwise": (1e-6, 1e-10),
        "gather": (1e-6, 1e-10),
    },
    overhead=(1e-6, 1e-6, 1e-6),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL, encoding="utf-8")
    RATES.save(tmp_path / "rates.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    try:
        return main(["estimate", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def result_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--rates", "rates.json", "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("here")
def test_a_run_on_this_cpu_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    found = result_of(
        capsys,
        *("net.py:build", "--batch", "32", "--input-shape", "8", "--optimizer", "adamw"),
        *("--dataset-size", "3200", "--epochs", "2", "--price", "36"),
    )
    step = found["step_s"]["median"]
    assert found["epoch_s"]["median"] == pytest.approx(100 * step)
    assert found["cost_dollars"]["median"] == pytest.approx(200 * step / 100)
    assert (found["source"], found["traced"], found["optimizer"]) == ("predicted", True, "AdamW")
    assert found["step_s"]["low"] <= step <= found["step_s"]["high"]
    assert found["memory_bytes"]["parameters"] == 4 * (8 * 16 + 16 + 16 * 4 + 4)


@pytest.mark.usefixtures("here")
def test_several_workers_are_labelled_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    found = result_of(
        capsys,
        *("net.py:build", "--batch", "32", "--input-shape", "8"),
        *("--workers", "4", "--link", "1Gbit/s+50us"),
    )
    assert (found["source"], found["workers"]) == ("simulated", 4)
    assert found["step_s"]["median"] <= found["ddp_step_s"] * (1 + 1e-9)


@pytest.mark.usefixtures("here")
def test_the_table_says_what_is_what(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ("--input-shape", "8")
    assert run("net.py:build", "--batch", "4", *shape, "--rates", "rates.json") == 0
    printed = capsys.readouterr().out
    for word in ("median", "low", "high", "predicted", "memory", "bound by", "change first"):
        assert word in printed


def test_a_column_of_the_table_has_one_unit() -> None:
    result = {
        "step_s": {"median": 0.9, "low": 0.5, "high": 1.5},
        "epoch_s": {"median": 90.0, "low": 60.0, "high": 180.0},
        "run_s": {"median": 7200.0, "low": 3600.0, "high": 10800.0},
        "cost_dollars": {"median": 1234.5, "low": 1.0, "high": 2.0},
        "kg_co2e": None,
    }
    assert dict(_columns(result)) == {
        "step (ms)": ["900", "500", "1,500"],
        "epoch (s)": ["90", "60", "180"],
        "run (h)": ["2", "1", "3"],
        "cost ($)": ["1,234.50", "1.00", "2.00"],
    }


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("missing", "flags", "extras"),
    [
        ("lightgbm", ["--device", "H100"], "torch,report,predict"),
        ("lightgbm", ["--device", "H100", "--json"], "torch,predict"),
        ("rich", [], "torch,report"),
    ],
)
def test_all_missing_extras_are_named_before_anything_is_traced(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    flags: list[str],
    extras: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(_estimate, "_describe", None)
    assert run("net.py:build", "--batch", "4", *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"estimate needs {missing}; install it with: pip install 'paceline[{extras}]'" in line


@pytest.mark.usefixtures("here")
def test_what_cannot_be_traced_is_measured_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("net.py:Chooses", "--batch", "4", "--input-shape", "8", "--json") == 0
    printed = capsys.readouterr()
    assert "falling back to 3 measured steps on this CPU" in printed.err
    found = json.loads(printed.out)
    assert (found["source"], found["traced"]) == ("measured", False)
    assert found["step_s"]["median"] > 0


@pytest.mark.usefixtures("here")
def test_tokens_are_taken_as_integers(capsys: pytest.CaptureFixture[str]) -> None:
    found = result_of(capsys, "net.py:tokens", "--batch", "4", "--input-shape", "6:int64")
    assert found["family"] == "MLP"


GOOD = ["net.py:build", "--batch", "4", "--input-shape", "8"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*GOOD, "--device", "H10"], "unknown device 'H10'; did you mean H100 PCIe 80GB"),
        ([*GOOD, "--batch", "0"], "batch must be at least 1, got 0"),
        ([*GOOD, "--price", "-1"], "price must not be negative, got -1.0"),
        ([*GOOD, "--epochs", "-1"], "epochs must be finite and not negative, got -1.0"),
        ([*GOOD, "--epochs", "nan"], "epochs must be finite and not negative, got nan"),
        ([*GOOD, "--workers", "0"], "workers must be at least 1, got 0"),
        ([*GOOD, "--workers", "2"], "2 workers need a link"),
        ([*GOOD, "--workers", "2", "--link", "fast"], "link must be a positive rate"),
        ([*GOOD, "--workers", "2", "--link=-1Gbit/s"], "link must be a positive rate"),
        ([*GOOD, "--dataset-size", "-1"], "dataset_size must not be negative, got -1"),
        ([*GOOD, "--precision", "8"], "precision must be 32, or 16"),
        ([*GOOD, "--precision", "tf32"], "a cpu has no tf32"),
        ([*GOOD, "--workers", "two"], "workers must be whole numbers"),
        ([*GOOD, "--accumulate", "0"], "micro_batches must be at least 1, got 0"),
        ([*GOOD, "--plot", "x.png"], "--plot needs --dataset-size, --epochs and a price"),
        ([*GOOD, "--optimizer", "magic"], "optimizer must be a class of torch.optim"),
        ([*GOOD, "--input-shape", "8,x"], "input-shape must be positive sizes"),
        ([*GOOD, "--input-shape", "0"], "input-shape must be positive sizes"),
        ([*GOOD, "--input-shape", "8:complex"], "with :int64 for tokens"),
        (["net.py:build", "--batch", "4"], "pass either example_input or input_shape"),
        (["net.py:wrong", *GOOD[1:]], "it returned int"),
        (["net.py:nothing", *GOOD[1:]], "net.py has no function 'nothing'; it has build"),
        (["net.py:NUMBER", *GOOD[1:]], "net.py has no function 'NUMBER'"),
        (["gone.py:build", *GOOD[1:]], "cannot read gone.py"),
        (["net:build", *GOOD[1:]], "model must be FILE.py:FUNCTION"),
        (["net.py", *GOOD[1:]], "model must be FILE.py:FUNCTION"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments, "--rates", "rates.json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert message in line


@pytest.mark.usefixtures("here")
def test_a_step_that_fails_for_real_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("net.py:build", "--batch", "4", "--input-shape", "7") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a step of the model fails on these inputs: mat1 and mat2" in last


@pytest.mark.usefixtures("here")
def test_a_function_that_raises_is_named_with_what_it_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("broken.py").write_text("def build():\n    raise KeyError('weights')\n", encoding="utf-8")
    assert run("broken.py:build", "--batch", "4", "--input-shape", "7") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: build() raised KeyError: 'weights'; it must return the model" in last
    assert run("broken.py:build", "--batch", "4", "--input-shape", "7", "--traceback") == 2
    printed = capsys.readouterr().err
    assert "in build" in printed
    assert printed.splitlines()[-1] == last


@pytest.mark.usefixtures("here")
def test_choices_are_compared_in_one_table_and_one_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lightgbm", reason="the predictor of GPUs needs it")
    flags = [
        *("net.py:build", "--batch", "32", "--input-shape", "8", "--dataset-size", "32000"),
        *("--epochs", "2", "--device", "T4,A100", "--precision", "tf32,bf16", "--workers", "1,2"),
        *("--link", "10Gbit/s", "--accumulate", "2", "--shard", "parameters"),
    ]
    assert run(*flags, "--json", "--plot", "choices.png") == 0
    rows = json.loads(capsys.readouterr().out)["choices"]
    assert [(row["device"], row["execution"], row["workers"]) for row in rows] == [
        (device, precision, workers)
        for device in ("T4", "A100 PCIe 80GB")
        for precision in ("tf32", "bf16")
        for workers in (1, 2)
    ]
    assert Path("choices.png").read_bytes()[:4] == b"\x89PNG"
    one, two, half = rows[0], rows[1], rows[2]
    watts, price = 70.0, 0.28
    hours = two["run_s"]["median"] / 3600
    assert two["cost_dollars"]["median"] == pytest.approx(2 * hours * price)
    assert two["kg_co2e"]["median"] == pytest.approx(2 * hours * watts / 1000 * 0.48)
    # 32,000 examples in steps of two batches of each worker.
    assert one["epoch_s"]["median"] == pytest.approx(500 * one["step_s"]["median"])
    assert half["memory_bytes"]["parameters"] == one["memory_bytes"]["parameters"] / 2
    assert two["memory_bytes"]["parameters"] < 0.6 * one["memory_bytes"]["parameters"]
    assert run(*flags) == 0
    printed = capsys.readouterr().out
    for word in ("kgCO2e / epoch", "$ / run", "memory (GiB)", "2 x T4", "bf16", "*"):
        assert word in printed


def test_a_file_that_does_not_import_is_answered(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "broken.py").write_text("import nothing_like_this\n", encoding="utf-8")
    assert run("broken.py:build", "--batch", "4") == 2
    assert "cannot import broken.py: No module named" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_a_rates_file_that_was_damaged_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    Path("rates.json").write_text("{}", encoding="utf-8")
    assert run(*GOOD, "--rates", "rates.json") == 2
    assert "holds no CPU rates" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "rate", "hop"),
    [
        ("100Gbit/s", 12.5e9, None),
        ("10Gbps", 1.25e9, None),
        ("25GB/s", 25e9, None),
        ("1GiB/s+10us", 2**30, 1e-5),
        ("900 Mbit/s + 1ms", 112.5e6, 1e-3),
    ],
)
def test_links_are_read(text: str, rate: float, hop: float | None) -> None:
    assert parse_link(text) == (pytest.approx(rate), pytest.approx(hop) if hop else None)


def test_shapes_are_read() -> None:
    assert parse_shape("3,224,224") == ((3, 224, 224), None)
    assert parse_shape("128:int64") == ((128,), "int64")
    assert parse_shape(None) == (None, None)
