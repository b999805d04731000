import os
import subprocess
import sys
from pathlib import Path

import pytest

import paceline.demo
from paceline import __version__
from paceline.cli import main
from paceline.demo import DemoConfig
from paceline.errors import RankFailedError

MOST_RANKS = 4 * (os.cpu_count() or 1)


def run(*arguments: str) -> int:
    """Return the exit status, whether the command returned it or the parser raised it."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def the_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed: one line on stderr and nothing else."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: DemoConfig) -> None:
        raise AssertionError(f"must not start with {config}")

    monkeypatch.setattr(paceline.demo, "run_demo", fail)


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], f"ranks must lie in [2, {MOST_RANKS}] on this machine, got 0"),
        (["--ranks", "-1"], f"ranks must lie in [2, {MOST_RANKS}] on this machine, got -1"),
        (["--ranks", "1"], "got 1; with one rank there is nobody to wait for"),
        (["--ranks", str(MOST_RANKS + 1)], f"got {MOST_RANKS + 1}"),
        (["--ranks", "two"], "argument --ranks: invalid int value: 'two'"),
        (["--seconds", "nan"], "seconds must lie in [15, 90], got nan"),
        (["--seconds", "inf"], "seconds must lie in [15, 90], got inf"),
        (["--seconds", "1000"], "seconds must lie in [15, 90], got 1000"),
        (["--seconds", "14.9"], "seconds must lie in [15, 90], got 14.9"),
        (["--seconds", "soon"], "argument --seconds: invalid float value: 'soon'"),
        (["--output"], "argument --output: expected one argument"),
        (["--speed", "3"], "unrecognized arguments: --speed 3"),
    ],
)
def test_a_bad_value_is_answered_by_its_rule_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("demo", *arguments) == 2
    line = the_line(capsys)
    assert line.startswith("paceline")
    assert "error: " in line
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_what_is_not_a_command_is_answered_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    assert message in the_line(capsys)


def test_an_output_under_a_file_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    for output in (file, file / "folder"):
        assert run("demo", "--output", str(output)) == 2
        line = the_line(capsys)
        assert f"output must be a folder that can be written to, got {output}: " in line
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc file system")
def test_an_output_that_nobody_can_make_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--output", "/proc/nope") == 2
    assert "can be written to, got /proc/nope: " in the_line(capsys)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (RankFailedError("rank 1 died"), 1, "paceline: rank 1 died"),
        (ValueError("no sources"), 2, "paceline: error: no sources"),
        (KeyboardInterrupt(), 130, "paceline: interrupted"),
    ],
)
def test_how_a_run_ended_shows_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    def fail(config: DemoConfig) -> None:
        raise error

    monkeypatch.setattr(paceline.demo, "run_demo", fail)
    assert run("demo") == status
    assert the_line(capsys) == line


@pytest.mark.parametrize("missing", ["rich", "torch"])
def test_a_missing_extra_is_named_with_the_way_to_install_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from paceline.cli import main; sys.exit(main(['demo']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert f"the demo needs {missing}" in line
    assert "install it with: pip install 'paceline[torch,report]'" in line


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"paceline {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_tells_the_options(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(*arguments) == 0
    assert "demo" in capsys.readouterr().out
