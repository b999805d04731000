"""A cursor as plain values, and back, with every value checked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from paceline._files import shown
from paceline.balance._config import BalanceConfig, Microbatches
from paceline.cost import Worker
from paceline.errors import StateMismatchError

VERSION = 1
# A restart may change these: they belong to the segments.
FREE_TO_CHANGE = ("num_workers", "num_microbatches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Steps of one epoch that one set of workers delivered.

    Attributes:
        workers: Speed and overhead of each that its plan assumed.
        num_microbatches: Least number of micro-batches per worker and step.
        num_steps: Steps delivered.
        digest: Of its plan; None if nothing was delivered.
    """

    workers: tuple[Worker, ...]
    num_microbatches: Microbatches
    num_steps: int
    digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What tells one dataset from another.

    Attributes:
        num_examples: Its length.
        digest: Hash of all that a plan depends on: costs, sizes, bytes.
    """

    num_examples: int
    digest: str


def plain_state(
    dataset: Dataset, config: BalanceConfig, epoch: int, segments: Sequence[Segment]
) -> dict[str, Any]:
    """Return a new dictionary of plain values, safe to save as JSON."""
    return {
        "version": VERSION,
        "dataset": asdict(dataset),
        "config": _plain_config(config),
        "epoch": epoch,
        "segments": [
            {
                "num_workers": len(segment.workers),
                "num_microbatches": segment.num_microbatches,
                "num_steps": segment.num_steps,
                "speeds": [worker.speed for worker in segment.workers],
                "overheads_s": [worker.overhead_s for worker in segment.workers],
                "plan": segment.digest,
            }
            for segment in segments
        ],
    }


def segments_of(
    state: Mapping[str, Any], dataset: Dataset, config: BalanceConfig
) -> tuple[int, tuple[Segment, ...]]:
    """Return the epoch and the segments of a saved state.

    Raises:
        StateMismatchError: If the state is of another dataset or configuration, or damaged.
    """
    if not isinstance(state, Mapping) or "version" not in state:
        raise StateMismatchError("this is no state of a sampler: it has no 'version'")
    if state["version"] != VERSION:
        raise StateMismatchError(
            f"the state has version {shown(state['version'])}, and this paceline reads version "
            f"{VERSION}; use the paceline that saved it"
        )
    _check_dataset(dataset, _value(state, "dataset", Mapping))
    _check_config(config, _value(state, "config", Mapping))
    segments = [_segment(part) for part in _value(state, "segments", Sequence)]
    if not segments:
        raise StateMismatchError("the state is damaged: 'segments' is empty")
    return _count(state, "epoch", least=0), tuple(segments)


def _check_dataset(present: Dataset, saved: Mapping[str, Any]) -> None:
    num_examples = _count(saved, "num_examples", least=0)
    if num_examples != present.num_examples:
        raise StateMismatchError(
            f"the state is of a dataset of {shown(num_examples)} examples, this one has "
            f"{present.num_examples}; restore with the dataset that it was saved with"
        )
    if _value(saved, "digest", str) != present.digest:
        raise StateMismatchError(
            "the state is of a dataset with other sizes, shards or cost model, though of as many "
            "examples; restore with the ones that it was saved with, or start a new epoch without "
            "the state"
        )


def _check_config(config: BalanceConfig, saved: Mapping[str, Any]) -> None:
    present = _plain_config(config)
    names = [*present, *(name for name in saved if name not in present)]
    changed = [name for name in names if saved.get(name) != present.get(name)]
    if changed:
        listed = ", ".join(
            f"{name!s:.40} was {shown(saved.get(name))} and is {shown(present.get(name))}"
            for name in changed[:3]
        )
        raise StateMismatchError(
            f"the state is of another configuration: {listed}; only {' and '.join(FREE_TO_CHANGE)} "
            "may change"
        )


def _plain_config(config: BalanceConfig) -> dict[str, Any]:
    plain = {name: _plain(value) for name, value in asdict(config).items()}
    return {name: value for name, value in plain.items() if name not in FREE_TO_CHANGE}


def _plain(value: Any) -> Any:
    """Return `value` as JSON holds it; JSON has no infinity."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if value == inf else value


def _segment(saved: Any) -> Segment:
    if not isinstance(saved, Mapping):
        raise StateMismatchError(f"the state is damaged: a segment is {shown(saved)}")
    num_workers = _count(saved, "num_workers", least=1)
    num_steps = _count(saved, "num_steps", least=0)
    speeds, overheads_s = (_value(saved, name, Sequence) for name in ("speeds", "overheads_s"))
    if not len(speeds) == len(overheads_s) == num_workers:
        raise StateMismatchError(
            f"the state is damaged: {shown(num_workers)} workers have {len(speeds)} speeds and "
            f"{len(overheads_s)} overheads"
        )
    try:
        workers = tuple(
            Worker(speed=speed, overhead_s=overhead_s)
            for speed, overhead_s in zip(speeds, overheads_s, strict=True)
        )
    except ValueError as error:
        raise StateMismatchError(f"the state is damaged: {error}") from None
    return Segment(
        workers=workers,
        num_microbatches=_microbatches(saved),
        num_steps=num_steps,
        digest=_value(saved, "plan", str) if num_steps else None,
    )


def _microbatches(saved: Mapping[str, Any]) -> Microbatches:
    if saved.get("num_microbatches") == "auto":
        return "auto"
    return _count(saved, "num_microbatches", least=1)


def _count(saved: Mapping[str, Any], name: str, *, least: int) -> int:
    value: int = _value(saved, name, int)
    if isinstance(value, bool) or value < least:
        raise StateMismatchError(
            f"the state is damaged: {name!r} must be a whole number from {least} up, got "
            f"{shown(value)}"
        )
    return value


def _value(saved: Mapping[str, Any], name: str, kind: type) -> Any:
    if name not in saved:
        raise StateMismatchError(
            f"the state has no {name!r} (found: {', '.join(map(str, saved)) or 'nothing':.200})"
        )
    if not isinstance(saved[name], kind):
        raise StateMismatchError(
            f"the state is damaged: {name!r} must be a {kind.__name__}, got {shown(saved[name])}"
        )
    return saved[name]
