"""How big each example of a dataset is."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from paceline._files import read_array
from paceline.cost import checked_column

Size = Callable[[Any], float] | str
# Examples that a worker process measures at once; below this many, none is started.
CHUNK = 256
Advance = Callable[[int], None]


def example_sizes(
    dataset: Dataset[Any] | Sequence[Any] | Mapping[str, Any],
    size: Size = len,
    *,
    num_workers: int | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> NDArray[np.float64]:
    """Measure every example of `dataset` once.

    Args:
        dataset: Map-style, with a length.
        size: A function of one example (picklable if worker processes are spawned), or
            the name of a column that holds the sizes, read as `dataset[size]`.
        num_workers: Worker processes; by default one per core that this process may
            use, shared among the ranks of this machine, and none for a small dataset.
        cache: `.npy` file to read the sizes from, or to write them to when it is not
            there yet.
        progress: Whether to draw a progress bar, on a terminal and if rich is installed.

    Returns:
        Shape `(num_examples,)`.

    Raises:
        ValueError: If a size is negative or not finite, the column is not one number per
            example, or the cache is of a dataset of another length.

    Examples:
        >>> example_sizes(["to", "be", "or not"]).tolist()
        [2.0, 2.0, 6.0]
        >>> example_sizes({"length": [5, 7], "text": ["...", "..."]}, "length").tolist()
        [5.0, 7.0]
    """
    path = None if cache is None else Path(cache)
    if path is not None and path.exists():
        return _read(path, dataset, size)
    if isinstance(size, str):
        sizes = _column(dataset, size)
    else:
        sizes = _measure(dataset, size, num_workers, progress)
    if path is not None:
        _write(path, sizes)
    return sizes


def _column(dataset: Any, name: str) -> NDArray[np.float64]:
    try:
        values = np.asarray(dataset[name][:], dtype=np.float64)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"dataset[{name!r}] must be a column of one number per example, but reading it failed "
            f"({type(error).__name__}: {error}); pass size=lambda example: len(example[{name!r}]) "
            "or the like"
        ) from None
    return checked_column(f"dataset[{name!r}]", values)


def _measure(
    dataset: Any, size: Callable[[Any], float], num_workers: int | None, progress: bool
) -> NDArray[np.float64]:
    num_examples = _length(dataset)
    loader = DataLoader(
        dataset,
        batch_size=CHUNK,
        num_workers=_num_workers(num_examples) if num_workers is None else num_workers,
        collate_fn=_SizesOf(size),
    )
    parts: Iterable[NDArray[np.float64]] = loader
    with _progress_bar(num_examples, progress) as advance:
        sizes = np.concatenate([np.zeros(0), *_counted(parts, advance)])
    return checked_column("sizes", sizes)


class _SizesOf:
    """Measures a list of examples where they are loaded, so that only numbers are sent."""

    def __init__(self, size: Callable[[Any], float]) -> None:
        self._size = size

    def __call__(self, examples: list[Any]) -> NDArray[np.float64]:
        return np.array([self._size(example) for example in examples], dtype=np.float64)


def _counted(
    parts: Iterable[NDArray[np.float64]], advance: Advance
) -> Iterator[NDArray[np.float64]]:
    for part in parts:
        advance(len(part))
        yield part


def _length(dataset: Any) -> int:
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"the dataset must have a length, and {type(dataset).__name__} has none; a stream "
            "cannot be planned"
        )
    return len(dataset)


def _num_workers(num_examples: int) -> int:
    """Return how many processes are worth starting on this rank."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_workers = min((num_cores or 1) // num_ranks, num_examples // (8 * CHUNK))
    return num_workers if num_workers > 1 else 0


@contextmanager
def _progress_bar(num_examples: int, wanted: bool) -> Iterator[Advance]:
    """Draw a bar on the terminal of rank 0, if there is one and rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        wanted = False
    if not wanted or os.environ.get("RANK", "0") != "0":
        yield lambda _: None
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring examples", total=num_examples)
        yield lambda count: bar.advance(task, count)


def _read(path: Path, dataset: Any, size: Size) -> NDArray[np.float64]:
    sizes = checked_column(f"sizes in {path}", read_array(path))
    num_examples = len(dataset[size]) if isinstance(size, str) else _length(dataset)
    if len(sizes) != num_examples:
        raise ValueError(
            f"{path} holds the sizes of {len(sizes)} examples, but the dataset has {num_examples}; "
            "delete the file or choose another cache"
        )
    return sizes


def _write(path: Path, sizes: NDArray[np.float64]) -> None:
    """Write under another name first: other ranks may be reading, or writing the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, sizes, allow_pickle=False)
    partial.replace(path)
