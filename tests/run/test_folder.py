"""A run's folder: what is written is read back, and what is damaged is one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paceline.run import RunFolder, Steps
from paceline.timeline import Timeline

INFO = {"state": "running", "exit_code": None, "num_ranks": 2}


def steps(num_steps: int, begin: int = 0) -> Steps:
    rows = np.arange(begin, begin + num_steps)
    whole = dict.fromkeys(("num_examples", "num_elements", "num_padding"), rows)
    columns = {name: rows.astype("f4") for name in Steps._fields} | whole
    times = {name: rows.astype("f8") for name in ("begin_s", "arrival_s")}
    return Steps(**{**columns, **times, "num_microbatches": rows.astype("i4")})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_what_is_written_is_read(folder: RunFolder) -> None:
    assert (folder.is_run(), folder.ranks(), folder.read_facts(3)) == (False, [], None)
    assert len(folder.read_steps(3).begin_s) == 0
    folder.write_info(INFO)
    folder.write_facts(3, {"host_s": None})
    folder.write_steps(3, 0, steps(10))
    folder.write_steps(3, 0, steps(1000))  # A chunk grows until it is full.
    folder.write_steps(3, 1, steps(5, begin=1000))
    trace = Timeline.from_columns("measured", start_s=[0.0, 1.0], duration_s=[1.0, 0.5])
    folder.write_trace(3, trace)

    assert folder.read_info() == {"schema": 1, **INFO}
    assert (folder.ranks(), folder.read_facts(3)) == ([3], {"host_s": None})
    for name, column in folder.read_steps(3)._asdict().items():
        assert column.tolist() == list(range(1005)), name
        assert column.dtype == getattr(steps(1), name).dtype
    found = folder.read_trace(3)
    assert found is not None
    assert (str(found), found.names) == (str(trace), trace.names)
    assert not list(folder.path.rglob("*.partial"))
    folder.clear(3)
    assert folder.ranks() == []


def test_a_step_takes_under_200_bytes(folder: RunFolder) -> None:
    folder.write_steps(0, 0, steps(1000))
    assert sum(path.stat().st_size for path in folder.path.rglob("*.npz")) < 200 * 1000


def damage_state(folder: RunFolder) -> None:
    folder.write_info(INFO | {"state": "asleep"})


def damage_chunk(folder: RunFolder) -> None:
    path = next(folder.path.rglob("steps-00000.npz"))
    path.write_bytes(path.read_bytes()[:200])


def compress_chunk(folder: RunFolder) -> None:
    path = next(folder.path.rglob("steps-00000.npz"))
    np.savez_compressed(path, allow_pickle=False, begin_s=np.zeros(100_000))


def drop_chunk(folder: RunFolder) -> None:
    folder.write_steps(0, 1, steps(3))
    next(folder.path.rglob("steps-00000.npz")).unlink()


def other_columns(folder: RunFolder) -> None:
    folder.write_steps(0, 0, steps(3)._replace(num_padding=np.zeros(2, np.int64)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder.path / "run.json").unlink(), "holds no run"),
        (lambda folder: (folder.path / "run.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder.path / "run.json").write_text("{"), "is not a JSON file"),
        (
            lambda folder: (folder.path / "run.json").write_text("{}"),
            "must have schema 1, got None",
        ),
        (damage_state, "state must be one of running, ended, failed, interrupted, got 'asleep'"),
        (damage_chunk, "is not a .npz file of numbers"),
        (compress_chunk, "it is compressed"),
        (drop_chunk, "rank 0: .* has steps-00001.npz but not chunk 0"),
        (other_columns, r"column num_padding must be i8 of one length, got int64 of shape \(2,\)"),
    ],
)
def test_a_damaged_folder_is_one_line(
    folder: RunFolder, damage: Callable[[RunFolder], None], message: str
) -> None:
    folder.write_info(INFO)
    folder.write_steps(0, 0, steps(4))
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        (folder.read_info(), folder.read_steps(0))
    assert "\n" not in str(caught.value)
