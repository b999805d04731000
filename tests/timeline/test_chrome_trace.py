import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.timeline import SOURCES, Kind, Source, Span, Timeline
from paceline.timeline._chrome import PIDS_PER_PART


def trace_of(run: Timeline, path: Path) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(run.to_chrome_trace(path).read_text(encoding="utf-8"))
    return trace


def spans_in(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def labels_in(trace: dict[str, Any], what: str) -> dict[tuple[int, int], str]:
    labels = [event for event in trace["traceEvents"] if event["name"] == what]
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in labels}


def two_ranks(source: Source = "measured", offset_s: float = 0.0) -> Timeline:
    return Timeline.from_spans(
        source,
        [
            Span(0, "main", Kind.FORWARD, "forward", 10.0, 0.25, step=4),
            Span(0, "comm", Kind.COLLECTIVE, "bucket 0", 10.25, 0.5, step=4, collective=7),
            Span(3, "comm", Kind.COLLECTIVE, "bucket 0", 10.5 + offset_s, 0.25, collective=7),
        ],
    )


def test_a_span_becomes_one_event_in_microseconds_from_zero(tmp_path: Path) -> None:
    assert spans_in(trace_of(two_ranks(), tmp_path / "run.json"))[1] == {
        "ph": "X",
        "pid": 0,
        "tid": 1,
        "ts": 250_000.0,
        "dur": 500_000.0,
        "cat": "collective",
        "name": "bucket 0",
        "args": {"step": 4, "collective": 7},
    }


def test_a_span_of_one_rank_alone_names_no_collective(tmp_path: Path) -> None:
    first = spans_in(trace_of(two_ranks(), tmp_path / "run.json"))[0]
    assert (first["ts"], first["args"]) == (0.0, {"step": 4})


@pytest.mark.parametrize("source", SOURCES)
def test_the_source_is_on_the_trace_and_on_each_rank(source: Source, tmp_path: Path) -> None:
    trace = trace_of(two_ranks(source), tmp_path / "run.json")
    assert trace["otherData"] == {"source": source}
    assert set(labels_in(trace, "process_name").values()) == {
        f"rank 0 ({source})",
        f"rank 3 ({source})",
    }


def test_every_lane_of_every_rank_has_its_name(tmp_path: Path) -> None:
    trace = trace_of(two_ranks(), tmp_path / "run.json")
    assert labels_in(trace, "thread_name") == {(0, 0): "main", (0, 1): "comm", (3, 1): "comm"}


@pytest.mark.parametrize("offset_s", [0.0, 1e4, -64.0])
def test_ranks_stand_on_one_clock(offset_s: float, tmp_path: Path) -> None:
    events = spans_in(trace_of(two_ranks(offset_s=offset_s), tmp_path / "run.json"))
    assert {event["ts"] + event["dur"] for event in events[1:]} == {750_000.0}
    assert events[2]["ts"] == 500_000.0


@given(run=st.from_type(Timeline))
def test_any_timeline_gives_valid_json_with_all_spans(
    run: Timeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    events = spans_in(trace_of(run, tmp_path_factory.getbasetemp() / "any.json"))
    aligned = run.aligned()
    assert [event["name"] for event in events] == [span.name for span in run]
    assert [event["dur"] for event in events] == [span.duration_s * 1e6 for span in run]
    origin_s = min((span.start_s for span in aligned), default=0.0)
    assert [event["ts"] for event in events] == [(s.start_s - origin_s) * 1e6 for s in aligned]


def test_a_plan_stands_below_what_happened_and_both_are_read_back(tmp_path: Path) -> None:
    run = two_ranks()
    plan = replace(run, source="simulated", start_s=run.start_s + 1.0)
    trace = trace_of_both(run, plan, tmp_path / "run.json")
    pids = [event["pid"] for event in spans_in(trace)]
    assert pids == [0, 0, 3, PIDS_PER_PART, PIDS_PER_PART, PIDS_PER_PART + 3]
    names = labels_in(trace, "process_name")
    assert names[0, 0] == "rank 0 (measured)"
    assert names[PIDS_PER_PART, 0] == "rank 0 (simulated)"
    found = Timeline.from_chrome_trace(tmp_path / "run.json")
    assert [part.source for part in found] == ["measured", "simulated"]
    for part, expected, begin_s in zip(found, (run, plan), (0.0, 1.0), strict=True):
        wanted = replace(expected, start_s=expected.start_s - 10.0)
        assert list(part) == list(wanted)
        assert part.start_s.min() == begin_s


def trace_of_both(run: Timeline, plan: Timeline, path: Path) -> dict[str, Any]:
    run.to_chrome_trace(path, beside=plan)
    trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return trace


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"traceEvents": 3}',
        '{"traceEvents": [{"ph": "X"}]}',
        '{"traceEvents": [{"ph": "X", "pid": 0, "tid": 0, "cat": "cpu_op", "name": "aten::mm"}]}',
    ],
)
def test_what_is_no_trace_of_ours_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other.json is no trace that Paceline wrote") as caught:
        Timeline.from_chrome_trace(path)
    assert "\n" not in str(caught.value)


def test_names_with_quotes_and_other_scripts_survive(tmp_path: Path) -> None:
    name = 'schicht "ä"\n\\ 層'
    run = Timeline.from_spans("measured", [Span(0, name, Kind.COMPUTE, name, 0.0, 1.0)])
    trace = trace_of(run, tmp_path / "run.json")
    assert spans_in(trace)[0]["name"] == name
    assert labels_in(trace, "thread_name") == {(0, 0): name}


def test_a_trace_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    target.write_text("old", encoding="utf-8")
    assert two_ranks().to_chrome_trace(str(target)) == target
    assert json.loads(target.read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("target", ["missing/run.json", "file/run.json", "folder"])
def test_a_target_that_cannot_be_written_is_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"folder that can be written to, got .*{target}"):
        two_ranks().to_chrome_trace(tmp_path / target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_writing_a_long_trace_holds_a_fraction_of_it(tmp_path: Path) -> None:
    run = Timeline.from_columns("measured", start_s=np.arange(30_000.0), duration_s=np.ones(30_000))
    tracemalloc.start()
    try:
        trace = run.to_chrome_trace(tmp_path / "trace.json")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < trace.stat().st_size
