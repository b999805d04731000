"""`paceline trace`: a folder or a file in, sums out, one line for everything else."""

import json
from pathlib import Path

import pytest

from paceline.cli import main
from paceline.run import RunFolder
from paceline.timeline import Kind, Span, Timeline

BUCKETS = ("bucket 0, 1,000 bytes", "bucket 1, 3,000 bytes")


def spans_of(rank: int) -> Timeline:
    """Two steps of one rank; the second is told by layer and by bucket."""
    spans = []
    for step in (1, 2):
        begin_s = 10.0 * step
        passes = (
            (Kind.FORWARD, "forward", 1.0),
            (Kind.BACKWARD, "backward", 2.0 + rank),
            (Kind.COLLECTIVE, "all-reduce", 3.0 - rank),
            (Kind.OPTIMIZER, "optimizer", 0.5),
        )
        for kind, name, takes_s in passes:
            number = step if kind is Kind.COLLECTIVE else -1
            spans.append(Span(rank, "main", kind, name, begin_s, takes_s, step, number))
            begin_s += takes_s
    for kind, name, at_s, takes_s in (
        (Kind.FORWARD, "layer", 20.0, 1.0),
        (Kind.BACKWARD, "layer", 21.0, 2.0),
    ):
        spans.append(Span(rank, "layers", kind, name, at_s, takes_s, 2))
    for number, (name, takes_s) in enumerate(zip(BUCKETS, (1.5, 2.0), strict=True)):
        begin_s = 22.0 + rank + number
        spans.append(
            Span(rank, "buckets", Kind.COLLECTIVE, name, begin_s, takes_s - rank, 2, 100 + number)
        )
    return Timeline.from_spans("measured", spans)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = RunFolder(tmp_path / "run")
    place.write_info({"state": "ended", "num_ranks": 2, "script": "train.py"})
    for rank in (0, 1):
        place.write_trace(rank, spans_of(rank))
    return place.path


def test_a_run_is_summed_up_and_written_with_its_plan(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "trace.json"
    assert main(["trace", str(folder), "--output", str(page), "--json"]) == 0
    measured, plan = json.loads(capsys.readouterr().out)
    # Detail counts once: two steps of 1 + 2.5 + 0.5 s of compute, on average over ranks.
    assert measured["num_steps"] == 2
    assert sum(measured["busy_s"]) == pytest.approx(2 * 2 * 4.0)
    assert plan["source"] == "simulated"
    seconds = {(one["lane"], one["name"]): one["seconds"] for one in plan["spans"]}
    # 4,000 bytes were through 1.5 s after the last rank was there: the link that they show.
    assert seconds["main", "backward"] == pytest.approx(2.5)
    assert {name for lane, name in seconds if lane == "buckets"} == set(BUCKETS)

    assert main(["trace", str(page)]) == 0
    told = capsys.readouterr().out
    for line in ("lane layers, measured", "lane buckets, measured", "lane buckets, simulated"):
        assert line in told
    assert "backward   layer" in told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "cannot read"),
        ("empty", "holds no run; give the folder that `paceline run` named"),
        ("text", "is not a JSON file"),
        ("other", "is no trace that Paceline wrote"),
        ("short", "holds no spans of single steps"),
    ],
)
def test_anything_else_is_answered_in_one_line(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no", encoding="utf-8")
    (tmp_path / "other").write_text('{"schemaVersion": 1}', encoding="utf-8")
    RunFolder(tmp_path / "short").write_info({"state": "ended", "num_ranks": 1})
    assert main(["trace", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
