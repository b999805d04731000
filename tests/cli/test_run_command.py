"""`paceline run`: what it takes, and what it says of what it cannot take."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import paceline.torch.run
from paceline.cli import main
from paceline.run import RunFolder, Steps
from paceline.torch.run import Launched


def run(*arguments: str) -> int:
    """Return the exit status, whether the command returned it or the parser raised it."""
    try:
        return main(["run", *arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # Torch elastic would set it.
    Path("train.py").write_text("raise AssertionError('must not start')")
    RunFolder(tmp_path / "old").write_info({"state": "ended", "exit_code": 0})
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: training_script"),
        (["missing.py"], "there is no script missing.py; write paceline run"),
        (["--bogus", "train.py"], "unrecognized arguments: --bogus"),
        (["--nproc-per-node=many", "train.py"], "Unsupported nproc_per_node value: many"),
        (["--nnodes=0", "train.py"], "torchrun's arguments do not fit: min_nodes must be > 0"),
        (["--no-python", "train.py"], "--no-python says that train.py is none"),
        (["--price=nan", "train.py"], "price must be finite and not negative, got nan"),
        (["--output=old", "train.py"], "old holds another run; give --output a new folder"),
        (["--apply", "old", "train.py"], "no rank recorded a step in old"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert message in line
    assert printed.out == ""
    assert sorted(path.name for path in place.iterdir()) == ["old", "train.py"]


@pytest.mark.parametrize(
    ("arguments", "before", "script"),
    [
        (["train.py"], None, "train.py"),
        (["--apply", "train.py"], None, "train.py"),
        (["--apply", "old", "--nproc-per-node=2", "train.py"], "old", "train.py"),
        (["--nproc-per-node=2", "--apply", "missing.py"], None, "missing.py"),
    ],
)
def test_a_runs_folder_may_follow_apply(
    launched: list[Namespace], place: Path, arguments: list[str], before: str | None, script: str
) -> None:
    for rank in range(2):
        RunFolder(place / "old").write_steps(rank, 0, steps(40, 0.01))
    RunFolder(place / "old").write_info({"state": "ended", "exit_code": 0, "num_ranks": 2})
    run(*arguments, "--apply", "theirs")
    (options,) = launched
    assert (options.before, options.training_script) == (before and Path(before), script)
    assert options.applies == ("yes" if "--apply" in arguments else "no")
    assert options.training_script_args == ["--apply", "theirs"]


def test_apply_says_what_it_gained_and_compares(
    launched: list[Namespace], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        RunFolder(place / "old").write_steps(rank, 0, steps(40, 0.01))
    RunFolder(place / "old").write_info({"state": "ended", "exit_code": 0, "num_ranks": 2})
    run("--json", "--apply", "old", "train.py")
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["compared"]["outcome"] == "same"
    assert (told["applied"]["outcome"], told["applied"]["gain"]) == ("kept", 1.5)
    assert "against old: no difference beyond noise" in printed.err


VERIFIED = {
    "again": 0.0, "divided": 2e-7, "num_probes": 4, "num_batches": 9, "is_partition": True,
    "is_same_later": True, "correlation": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    ("applied", "exit_code", "status"),
    [
        (VERIFIED, 0, 0),
        ({**VERIFIED, "divided": 0.1}, 0, 1),
        ({"why_not": "one rank alone"}, 0, 1),
        (VERIFIED, 7, 7),
    ],
)
def test_verify_ends_as_what_it_found(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    applied: dict[str, object],
    exit_code: int,
    status: int,
) -> None:
    folder = RunFolder(place / "new")
    folder.write_info({"state": "ended", "exit_code": 0, "applied": applied})
    monkeypatch.setattr(paceline.torch.run, "launch", lambda *_: Launched(folder, exit_code))
    assert main(["verify", "--json", "train.py"]) == status
    printed = capsys.readouterr()
    if exit_code:
        assert "exit status 7" in printed.err
    else:
        assert json.loads(printed.out)["passed"] == (status == 0)
        assert printed.err.startswith("gradients")


def test_help_needs_no_torch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline.cli._run.find_spec", lambda _: None)
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--output" in shown
    assert "--nproc-per-node" not in shown


def test_help_shows_torchruns_arguments_and_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert "--nproc-per-node" in text
    assert "--output" in text


def steps(num_steps: int, late_s: float) -> Steps:
    """Return steps of 100 ms, of which a rank waits for its loader, and then for the others."""
    column = np.full(num_steps, 0.02, dtype=np.float32)
    times = dict.fromkeys([name for name in Steps._fields[2:] if name.endswith("_s")], column * 0)
    begin_s = np.arange(num_steps) * 0.1
    times |= {
        "data_s": column * 0 + np.float32(late_s),
        "forward_s": column,
        "backward_s": column,
        "collective_s": column * 0 + np.float32(0.06 - late_s),
    }
    whole = dict.fromkeys(Steps._fields[-3:], np.full(num_steps, 4, dtype=np.int64))
    return Steps(
        begin_s=begin_s,
        arrival_s=begin_s + 0.04 + late_s,
        num_microbatches=np.ones(num_steps, dtype=np.int32),
        **times,
        **whole,
    )


@pytest.fixture
def launched(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Namespace]:
    """Record what would be launched; the run waits for the loader of rank 1."""
    seen: list[Namespace] = []

    def launch(options: Namespace, command: list[str]) -> Launched:
        seen.append(options)
        folder = RunFolder(place / "new")
        info = {"state": "failed", "exit_code": 7, "num_ranks": 2, "command": command}
        info["applied"] = {"outcome": "kept", "gain": 1.5} if options.applies == "yes" else None
        folder.write_info(info)
        for rank in range(2):
            folder.write_steps(rank, 0, steps(40, 0.055 * rank))
        return Launched(folder, 7)

    monkeypatch.setattr(paceline.torch.run, "launch", launch)
    return seen


def test_arguments_are_split_at_the_script_and_the_verdict_is_told(
    launched: list[Namespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--nproc-per-node=2", "--json", "train.py", "--json", "--output", "x", "-h") == 7
    (options,) = launched
    assert (options.nproc_per_node, options.training_script, options.output) == (
        "2",
        "train.py",
        None,
    )
    assert options.training_script_args == ["--json", "--output", "x", "-h"]
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["step_s"] == pytest.approx(0.1, rel=0.01)
    found = {cause["cause"]: cause for cause in told["causes"]}
    assert 0 < found["loader"]["gain"][0] <= found["loader"]["gain"][1] < 1
    assert "waiting for the loader" in printed.err
    assert "exit status 7" in printed.err


def test_a_run_without_steps_is_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(place / "new")
    monkeypatch.setattr(paceline.torch.run, "launch", lambda *_: Launched(folder, 0))
    assert run("--json", "train.py") == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": str(place / "new"), "step_s": None, "causes": []
    }  # fmt: skip
