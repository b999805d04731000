import json
from pathlib import Path

import pytest
from tests.run.planted import Loop, planted_steps
from tests.run.test_run import written

from paceline.cli import main


def test_compare_and_whatif_answer_in_words_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data_s in (("a", 1e-3), ("b", 20e-3)):
        folder = written(tmp_path / name, planted_steps(Loop(num_ranks=2, data_s=data_s), 0))
        folder.write_facts(0, {"gradient_bytes": 1_000_000})
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["compare", a, b]) == 0
    assert "slower" in capsys.readouterr().out
    assert main(["compare", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "data"
    assert main(["whatif", a, "--workers", "1..8", "--link", "10Gbit/s+20us"]) == 0
    assert "simulated" in capsys.readouterr().out
    assert (
        main(["whatif", a, "--workers", "2,64", "--latency-us", "3", "--cores", "2", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [point["num_workers"] for point in found["points"]] == [2, 64]
    assert found["hop_s"] == pytest.approx(3e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "a", "gone"], "holds no run"),
        (["whatif", "gone"], "holds no run"),
        (["whatif", "a", "--workers", "8..1"], "workers must be a number"),
        (["whatif", "a", "--workers", "many"], "workers must be a number"),
        (["whatif", "a", "--workers", "0"], "num_workers must be 1 to"),
        (["whatif", "a", "--link", "fast"], "link must be a positive rate"),
        (["whatif", "a", "--cores", "0"], "num_cores must be at least 1"),
        (["whatif", "a", "--balance", "best"], "balance must be one of"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a", planted_steps(Loop(num_ranks=2, num_steps=30), 0))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
