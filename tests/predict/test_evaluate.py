import json
from pathlib import Path

import numpy as np
import predict_evaluate
import pytest
from _predict_score_step import (
    REGIMES,
    Scored,
    _outer_folds,
    repeats_mape,
    shifts_between,
    summary,
)
from predict_evaluate import main
from tests.predict.step_tables import mlp_rows, write_table

from paceline.predict import evaluate
from paceline.predict._conformal import Estimate
from paceline.predict.step import _probe, _time
from paceline.predict.step._boost import BoostConfig
from paceline.predict.step._rows import StepRows
from paceline.predict.step._tables import read_step_tables
from paceline.predict.step._time import SHIFTS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trees: what is tested here is the bookkeeping."""
    monkeypatch.setattr(_time, "TOTAL", BoostConfig(num_trees=20))
    monkeypatch.setattr(_time, "COMPUTE", BoostConfig(num_trees=20))
    monkeypatch.setattr(_time, "MEMBER", BoostConfig(num_trees=10, num_leaves=8))
    monkeypatch.setattr(_probe, "NUM_SWEEPS", 1)
    monkeypatch.setattr(_probe, "MAX_ROWS_PER_DEVICE", 40)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_table(folder / "mlp.csv", mlp_rows())
    return folder


def test_a_timed_loader_takes_the_place_of_an_unknown_one(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for flags in ([], ["--loader-probe"]):
        assert main(["--data", str(data), "--regime", "lodo", "--json", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["families"]["MLP"]["total"])
    blind, timed = found
    # Ten of the 24 rows of each host and dataset are what the loader was timed by.
    assert (blind["num_rows"], timed["num_rows"]) == (288, 288 * 14 // 24)
    assert timed["mape"] < 0.8 * blind["mape"]
    assert timed["half_width_factor"] < blind["half_width_factor"]


def test_rows_new_on_two_counts_are_fitted_without_either(data: Path) -> None:
    rows, seen = read_step_tables(data), set()
    for train, test in _outer_folds(rows, "device+model", 0):
        for name in ("device", "model"):
            assert not set(train[name]) & set(test[name])
        seen |= set(test["device"])
    assert seen <= set(rows["device"])
    assert len(seen) >= 3


@pytest.mark.parametrize("regime", ["rand", "grp", "lodo", "lomo", "logo"])
def test_every_regime_scores_every_row_once(
    data: Path, regime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(data), "--regime", regime, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["regime"], result["num_scored"]) == (regime, 288)
    for quantity in ("total", "compute"):
        scores = result["families"]["MLP"][quantity]
        assert 0 < scores["mape"] < 100
        assert 0 <= scores["coverage"] <= 100


def test_probed_rows_are_left_out_of_the_score(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(data), "--regime", "logo", "--probes", "5", "--json"]
    assert main([*arguments, "--compute-only"]) == 0
    result = json.loads(capsys.readouterr().out)
    # Ten draws of four devices with 72 rows each.
    assert result["num_scored"] == 10 * 4 * (72 - 5)
    assert list(result["families"]["MLP"]) == ["compute"]


def test_two_runs_print_the_same(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for _ in range(2):
        main(["--data", str(data), "--regime", "lomo", "--json"])
        results.append({**json.loads(capsys.readouterr().out), "cpu_s": 0})
    assert results[0] == results[1]


def test_one_folder_trains_and_another_is_scored(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = mlp_rows()
    write_table(data / "mlp.csv", [row for row in table if row["gpu_name"] != "NVIDIA L4"])
    (tmp_path / "test").mkdir()
    new = [row for row in table if row["gpu_name"] == "NVIDIA L4"]
    write_table(tmp_path / "test" / "mlp.csv", new)
    assert main(["--train", str(data), "--test", str(tmp_path / "test")]) == 0
    assert "72 rows scored" in capsys.readouterr().out
    train, test = read_step_tables(data), read_step_tables(tmp_path / "test")
    assert set(shifts_between(train, test)) == {"device"}
    assert set(shifts_between(train, train)) == {"known"}


@pytest.mark.parametrize(
    ("column", "value", "shift"),
    [
        ("device", "Foo 77", "device"),
        ("dataset", "mine", "dataset"),
        ("model", "mine", "model"),
        ("device+model", "mine", "device+model"),
        ("batch_size", 31.0, "configuration"),
        ("optimizer", "Adam", "known"),
    ],
)
def test_a_row_is_scored_under_the_widest_shift_that_it_is(
    data: Path, column: str, value: object, shift: str
) -> None:
    rows = read_step_tables(data)
    new = {name: np.full(len(rows), value) for name in column.split("+")}
    changed = StepRows({**rows.columns, **new})
    assert set(shifts_between(rows, changed)) == {shift}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass --data DIR --regime NAME"),
        (["--train", "x"], "must be given together"),
        (["--target", "convergence"], "needs --data"),
        (["--target", "convergence", "--test", "x"], "must be given together"),
        (["--data", "DATA", "--regime", "lomo", "--loader-probe"], "needs regime lodo"),
        (["--data", "DATA", "--regime", "lodo", "--probes", "3"], "needs regime logo"),
        (["--data", "DATA", "--regime", "logo", "--probes", "-1"], "must not be negative"),
        (["--data", "nowhere", "--regime", "logo"], "there is no"),
    ],
)
def test_bad_calls_say_what_is_wrong_and_fail(
    arguments: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(data) if argument == "DATA" else argument for argument in arguments]
    assert main(filled) == 2
    assert message in capsys.readouterr().err


def test_convergence_is_printed_as_one_line_per_family_and_regime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"mape": 11.7, "constant_mape": 30.25, "coverage": 91.0}
    monkeypatch.setattr(
        predict_evaluate,
        "evaluate_convergence",
        lambda folder, seed: {"families": {"cnn": {"cv5": scores}}},
    )
    assert main(["--data", str(tmp_path), "--target", "convergence"]) == 0
    line = "cnn          cv5   MAPE  11.7 %  constant  30.2 %  coverage  91.0 %"
    assert capsys.readouterr().out.splitlines() == [line]


def test_repeats_say_what_nobody_can_predict(data: Path) -> None:
    one = read_step_tables(data).take([0, 0, 0, -1])
    times = {"compute_s": np.array([1.0, 2.0, 4.0, 1.0]), "loader_s": np.zeros(4)}
    measured = StepRows({**one.columns, **times})
    # The medians of the others are 3, 2.5 and 1.5; the last row has no repeat.
    expected = 100 * (abs(3 / 1 - 1) + abs(2.5 / 2 - 1) + abs(1.5 / 4 - 1)) / 3
    assert repeats_mape(measured) == {"MLP": pytest.approx(expected, abs=0.01)}


def test_errors_are_what_their_names_say() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    found = [Estimate(1.1, 1.0, 1.2), Estimate(1.0, 0.5, 1.5), Estimate(4.0, 2.0, 8.0)]
    scored = Scored(
        family=np.array(["MLP"] * 3),
        measured={"total": measured, "compute": measured},
        estimates={"total": found, "compute": found},
    )
    scores = summary(scored)["families"]["MLP"]["total"]  # type: ignore[index]
    assert scores["mape"] == pytest.approx(20.0)
    assert scores["median_ape"] == pytest.approx(10.0)
    assert scores["coverage"] == pytest.approx(66.7)


def test_every_regime_has_its_shift() -> None:
    assert tuple(REGIMES.values()) == SHIFTS


def test_the_module_runs_the_checkout_or_says_where_scores_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--train", "x"])
    assert evaluate.main() == 2
    assert "must be given together" in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "SCRIPT", Path("nowhere"))
    assert evaluate.main() == 2
    assert "python benchmarks/predict_evaluate.py" in capsys.readouterr().err
