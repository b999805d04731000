"""`paceline report`: a folder in, a page out, one line for everything else."""

import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest
from tests.report.conftest import made_steps

import paceline.report
from paceline.cli import main
from paceline.run import RunFolder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("recorded") / "run"
    place = RunFolder(path)
    place.write_info({"state": "ended", "num_ranks": 2, "script": "train.py"})
    for rank, steps in enumerate(made_steps(2, 60)):
        place.write_steps(rank, 0, steps)
        place.write_facts(rank, {"gradient_bytes": 4_000_000})
    return path


def test_a_page_is_written_and_opened(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(opened.append(address)))
    page = tmp_path / "page.html"
    assert main(["report", str(folder), "--output", str(page), "--open"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "train.py" in text
    assert "Hidden by the backward pass: about" in text
    assert opened == [page.as_uri()]
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{page} (")
    assert told[1] == f"no browser was found; open {page} in one"


def test_a_page_goes_into_the_folder_of_its_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paceline.report, "write_report", lambda _, path: path)
    (folder / "report.html").touch()
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "holds no run; give the folder that `paceline run` named"),
        (
            ["{run}", "--output", "{tmp}"],
            "the report must go to a file in a folder that exists, got",
        ),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [one.format(tmp=tmp_path, run=folder) for one in arguments]
    try:
        status = main(["report", *given])
    except SystemExit as ended:
        status = int(str(ended.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert (status, message in line) == (2, True)


def test_without_bokeh_the_way_to_get_it_is_told(folder: Path) -> None:
    code = (
        "import sys; sys.modules['bokeh'] = None\n"
        f"from paceline.cli import main; sys.exit(main(['report', {str(folder)!r}]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    line = (
        "paceline: error: the report needs bokeh; install it with: pip install 'paceline[report]'"
    )
    assert (ended.returncode, ended.stdout, ended.stderr.strip()) == (2, "", line)
