"""One way to compile the hot loops of the pure rooms, and to keep their machine code."""

import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, update_wrapper
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from types import FunctionType
from typing import Any, TypeVar, cast

import numpy as np

F = TypeVar("F", bound=Callable[..., object])
Item = TypeVar("Item")
Result = TypeVar("Result")

SAY_AFTER_S = 2.0
# Once a loop was interpreted this long in all, compiling it pays.
INTERPRETED_S = 1.0
_making = threading.RLock()
_spent_s = [0.0]
_here = threading.local()


def compiled(function: F, fastmath: frozenset[str] = frozenset()) -> F:
    """Compile `function` with numba on its first call, without the interpreter lock.

    Nothing is imported or written before that call. The machine code is kept in
    `cache_folder()`: the first process makes it while others wait to load it. Where that
    cannot be written to, each process compiles anew.

    Args:
        function: Calls nothing but NumPy and other compiled functions.
        fastmath: What LLVM may do to sums; nothing by default, as plans must be equal on
            every platform.
    """
    return cast(F, _Kernel(cast(FunctionType, function), fastmath=fastmath))


def compiled_beyond(num_values: int) -> Callable[[F], F]:
    """Like `compiled`, but let Python interpret what has little to do.

    For a function whose work grows with its arrays, and which gives the same bits either way:
    no sums of NumPy's, which adds in another order, and no 32-bit numbers.

    Args:
        num_values: What arrays may hold in all to be interpreted, in half a second or less.
    """

    def decorated(function: F) -> F:
        return cast(F, _Kernel(cast(FunctionType, function), num_values=num_values))

    return decorated


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return what `function` makes of each item, in order, on the cores that are this process's.

    Compiled loops hold no interpreter lock. Processes that torchrun started side by side share
    the cores of their machine; each takes its part.
    """
    items = list(items)
    num_beside = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    num_threads = min((os.cpu_count() or 1) // num_beside, len(items))
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(function, items))


def cache_folder() -> Path | None:
    """Return where machine code is kept: `NUMBA_CACHE_DIR`, else in the user's cache folder."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(given).absolute() / "paceline"
    if Path(given := os.environ.get("XDG_CACHE_HOME", "")).is_absolute():
        return Path(given, "paceline")
    places = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    try:
        return Path.home() / places.get(sys.platform, ".cache") / "paceline"
    except RuntimeError:  # a user without a home
        return None


class _Kernel:
    """A function that calls numba's dispatcher, which is made when one of the two is needed."""

    def __init__(
        self, function: FunctionType, fastmath: frozenset[str] = frozenset(), num_values: int = -1
    ) -> None:
        update_wrapper(self, function)
        self._function, self._fastmath = function, fastmath
        self._most_values, self._interpreted_s = num_values, 0.0
        self._made: dict[bool, Any] = {}
        self._call: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if getattr(_here, "is_interpreting", False):
            return self._function(*args)
        if self._call is None and not self._is_small(args):
            self._compile(args)
        return (self._call or self._interpret)(*args)

    def _is_small(self, args: tuple[Any, ...]) -> bool:
        return self._interpreted_s < INTERPRETED_S and _num_values(args) <= self._most_values

    def _interpret(self, *args: Any) -> Any:
        start_s = perf_counter()
        _here.is_interpreting = True
        try:
            with np.errstate(all="ignore"):  # Compiled code does not warn either.
                return self._function(*args)
        finally:
            _here.is_interpreting = False
            self._interpreted_s += perf_counter() - start_s

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this for in a compiled function that calls it."""
        return self._dispatcher(is_called_by_python=False)._numba_type_

    def _compile(self, args: tuple[Any, ...]) -> None:
        dispatcher = self._dispatcher(is_called_by_python=True)
        if not _numba().config.DISABLE_JIT:
            with _first_of_all(self._folder(), self._function.__name__):
                dispatcher.compile(tuple(_numba().typeof(value) for value in args))
        self._call = dispatcher

    def _dispatcher(self, *, is_called_by_python: bool) -> Any:
        """Return numba's dispatcher; what converts arguments from Python compiles for long."""
        folder, options = self._folder(), {"fastmath": set(self._fastmath), "nogil": True}
        if not is_called_by_python:
            options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
            folder = folder and folder / "inner"
        with _making:
            if is_called_by_python not in self._made:
                made = _dispatcher_of(self._function, options, folder)
                self._made[is_called_by_python] = made
            return self._made[is_called_by_python]

    def _folder(self) -> Path | None:
        """Return a folder for this machine code, another one if a file that it comes from changes.

        numba itself looks at the file of the function only, not at those of what it calls.
        """
        files = {kernel._function.__code__.co_filename for kernel in self._reached(set())}
        return _made_folder(tuple(sorted(files)))

    def _reached(self, seen: "set[_Kernel]") -> "set[_Kernel]":
        seen.add(self)
        for name in self._function.__code__.co_names:
            called = self._function.__globals__.get(name)
            if isinstance(called, _Kernel) and called not in seen:
                called._reached(seen)
        return seen


def _numba() -> Any:
    """Return numba, whose import takes a fifth of a second, once it is needed."""
    import numba

    return numba


def _num_values(args: tuple[Any, ...]) -> int:
    """Return how many values all arrays hold, those in tuples included."""
    arrays = sum(value.size for value in args if isinstance(value, np.ndarray))
    return arrays + sum(_num_values(value) for value in args if isinstance(value, tuple))


@cache
def _made_folder(files: tuple[str, ...]) -> Path | None:
    """Return the folder of what is compiled from `files` on machines like this one, if writable."""
    root = cache_folder()
    digest = sha256(f"{platform.machine()} numba {_numba().__version__}".encode())
    try:
        for file in files:
            digest.update(f"{file}\n".encode() + Path(file).read_bytes())
        folder = root and root / f"{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}"
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if folder and os.access(folder, os.W_OK) else None


def _dispatcher_of(function: FunctionType, options: dict[str, Any], folder: Path | None) -> Any:
    """Return numba's dispatcher, which keeps its machine code in `folder` and nowhere else."""
    numba = _numba()
    if folder is None or numba.config.DISABLE_JIT:
        return numba.njit(**options)(function)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        made = numba.njit(cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    save = made._cache.save_overload

    def save_if_possible(*args: Any) -> None:
        with suppress(OSError):  # a full disk
            save(*args)

    made._cache.save_overload = save_if_possible
    return made


@contextmanager
def _first_of_all(folder: Path | None, name: str) -> Iterator[None]:
    """Let one process in at a time until one has been through; then let all in at once."""
    done = folder and folder / f"{name}.done"
    with ExitStack() as held:
        if done and not _is_written(done):
            _lock(done, held)
        if done and _is_written(done):
            held.close()
        else:
            held.enter_context(_announced(is_kept=done is not None))
        yield
        if done and not _is_written(done):
            with suppress(OSError):
                done.write_text("The machine code beside this file is complete.\n")


def _is_written(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _lock(path: Path, held: ExitStack) -> None:
    """Wait for the lock of `path`, which ends with its process; go on where there are none."""
    with suppress(OSError, ImportError):
        import fcntl

        file = held.enter_context(path.open("a"))
        fcntl.flock(file, fcntl.LOCK_EX)
        # Closing alone would not do: a process that was forked meanwhile has it open too.
        held.callback(fcntl.flock, file, fcntl.LOCK_UN)


@contextmanager
def _announced(is_kept: bool) -> Iterator[None]:
    """Say why nothing happens, if what compiles in this process takes long in all."""
    timer = threading.Timer(max(SAY_AFTER_S - _spent_s[0], 0.0), _say, (is_kept,))
    start_s = perf_counter()
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        _spent_s[0] += perf_counter() - start_s


@cache
def _say(is_kept: bool) -> None:
    if is_kept:
        where = f"later processes load it from {cache_folder()}"
    else:
        where = f"{cache_folder()} cannot be written to, so set NUMBA_CACHE_DIR to keep it"
    if is_kept or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"paceline: compiling what makes plans; {where}", file=sys.stderr, flush=True)  # noqa: T201
