"""The files of a run: the only place that knows their names.

`run.json` says what was run and how it ended. `ranks/00000/` holds what rank 0 recorded:
`facts.json`, `steps-00000.npz` and so on, and `trace.npz`. Each file is written under another name
first and then renamed, so a process that is killed leaves whole files. Nothing is pickled.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._files import partial, read_arrays, read_json, shown, told, write_json
from paceline.run._steps import Steps
from paceline.timeline import COLUMNS, Timeline

SCHEMA = 1
STATES = ("running", "ended", "failed", "interrupted")
INFO, FACTS, TRACE, RANKS = "run.json", "facts.json", "trace.npz", "ranks"
STEP_DTYPES = dict(zip(Steps._fields, ("f8", "f8", *["f4"] * 8, "i4", *["i8"] * 3), strict=True))


class RunFolder(NamedTuple):
    """Where a run is kept. Each rank writes files of its own, and rank 0 those of the run.

    Attributes:
        path: The folder; it need not exist yet.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as place:
        ...     folder = RunFolder(Path(place) / "run")
        ...     folder.write_facts(0, {"dataset": "Digits"})
        ...     folder.ranks(), folder.read_facts(0)
        ([0], {'dataset': 'Digits'})
    """

    path: Path

    def is_run(self) -> bool:
        """Return whether a run was begun here."""
        return (self.path / INFO).is_file()

    def ranks(self) -> list[int]:
        """Return the ranks that recorded anything."""
        names = (path.name for path in (self.path / RANKS).glob("*"))
        return sorted(int(name) for name in names if re.fullmatch(r"\d{5,}", name))

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Write what was run and how it stands, in place of what was written before."""
        write_json(self.path / INFO, {"schema": SCHEMA, **info})

    def read_info(self) -> dict[str, Any]:
        """Read what `write_info` wrote.

        Raises:
            ValueError: If this is no folder of a run, or one that this version cannot read.
        """
        if not self.is_run():
            raise ValueError(f"{self.path} holds no run; give the folder that `paceline run` named")
        info = _read_object(self.path / INFO)
        if info.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.path / INFO} must have schema {SCHEMA}, got {shown(info.get('schema'))}; "
                "read it with the version of Paceline that wrote it"
            )
        if info.get("state") not in STATES:
            states = ", ".join(STATES)
            raise ValueError(
                f"{self.path / INFO}: state must be one of {states}, got {shown(info.get('state'))}"
            )
        return info

    def clear(self, rank: int) -> None:
        """Remove what `rank` wrote, as where torch elastic starts it again."""
        shutil.rmtree(self._rank(rank), ignore_errors=True)

    def write_facts(self, rank: int, facts: Mapping[str, Any]) -> None:
        """Write what `rank` knows of its model, its data and its machine."""
        write_json(self._rank(rank) / FACTS, facts)

    def read_facts(self, rank: int) -> dict[str, Any] | None:
        """Read what `write_facts` wrote; None if that rank wrote none.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self._rank(rank) / FACTS
        return _read_object(path) if path.is_file() else None

    def write_steps(self, rank: int, chunk: int, steps: Steps) -> None:
        """Write chunk number `chunk` of the steps of `rank`, in place of what it held before."""
        _write_arrays(self._rank(rank) / f"steps-{chunk:05}.npz", steps._asdict())

    def read_steps(self, rank: int) -> Steps:
        """Read all steps of `rank`, in order; none if it recorded none.

        Raises:
            ValueError: If a file is damaged, or a chunk is missing before the last one.
        """
        paths = sorted(
            self._rank(rank).glob("steps-*.npz"), key=lambda path: (len(path.name), path)
        )
        for number, path in enumerate(paths):
            if path.name != f"steps-{number:05}.npz":
                raise ValueError(
                    f"rank {rank}: {self._rank(rank)} has {path.name} but not chunk {number} "
                    "before it; copy the whole folder of the run"
                )
        chunks = [_steps_in(path) for path in paths]
        empty = [np.empty(0, dtype) for dtype in STEP_DTYPES.values()]
        return Steps(*map(np.concatenate, zip(empty, *chunks, strict=True)))

    def write_trace(self, rank: int, timeline: Timeline) -> None:
        """Write the spans of a few steps of `rank`."""
        columns = {name: getattr(timeline, name) for name in COLUMNS}
        tables = {"lanes": np.array(timeline.lanes), "names": np.array(timeline.names)}
        _write_arrays(
            self._rank(rank) / TRACE, {"source": np.array(timeline.source), **tables, **columns}
        )

    def read_trace(self, rank: int) -> Timeline | None:
        """Read what `write_trace` wrote; None if that rank wrote none.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self._rank(rank) / TRACE
        if not path.is_file():
            return None
        found = read_arrays(path)
        try:
            tables = {name: tuple(map(str, found[name].tolist())) for name in ("lanes", "names")}
            columns: dict[str, Any] = {name: found[name] for name in COLUMNS}
            source: Any = str(found["source"])
            return Timeline.from_columns(source, **tables, **columns)
        except KeyError as error:
            raise ValueError(f"{path} has no column {error}; it is no trace of a run") from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no trace of a run: {told(error)}") from None

    def _rank(self, rank: int) -> Path:
        return self.path / RANKS / f"{rank:05}"


def _steps_in(path: Path) -> Steps:
    found = read_arrays(path)
    missing = [name for name in STEP_DTYPES if name not in found]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; it holds no steps of a run")
    columns = {name: found[name] for name in STEP_DTYPES}
    for name, column in columns.items():
        if column.dtype != STEP_DTYPES[name] or column.shape != (len(columns["begin_s"]),):
            raise ValueError(
                f"{path}: column {name} must be {STEP_DTYPES[name]} of one length, got "
                f"{column.dtype} of shape {shown(column.shape)}"
            )
    return Steps(**columns)


def _read_object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {shown(found)}")
    return found


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with partial(path).open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    partial(path).replace(path)
