"""Give code little time and memory, and say how it took an input."""

import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from paceline.errors import PacelineError

Answer = Literal["accepted", "refused", "unclear", "hangs"]
MAX_MESSAGE = 1_000
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


class OutOfTimeError(BaseException):
    """Processor time is used up; not an `Exception`, so that nothing takes it for its own."""


@contextmanager
def limits(cpu_s: float | None = None, extra_bytes: int | None = None) -> Iterator[None]:
    """Inside, raise after `cpu_s` of processor time, and refuse more than `extra_bytes` of memory.

    For the main thread of a Unix process. Time is that of this process alone, so a busy machine
    changes nothing; it is noticed between two steps of Python.

    Raises:
        OutOfTimeError: When the time is used up.
        MemoryError: When more memory is asked for, by Python or NumPy.
    """
    before = signal.signal(signal.SIGVTALRM, _stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if extra_bytes is not None and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_address_bytes() + extra_bytes, hard))
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s or 0.0)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def answer_of(
    read: Callable[[], Any],
    *,
    cpu_s: float = 5.0,
    extra_bytes: int = 1 << 30,
    refusals: tuple[type[Exception], ...] = (PacelineError, ValueError),
) -> tuple[Answer, Any]:
    """Call `read` on what may be malformed, and say how it took that.

    Returns:
        `"accepted"` with what it returned; `"refused"` with an error that says what is wrong in
        one line; `"unclear"` with any other error; or `"hangs"` with `OutOfTimeError`.

    Examples:
        >>> answer_of(lambda: int("x"))[0], answer_of(lambda: [][0])[0]
        ('refused', 'unclear')
    """
    try:
        with limits(cpu_s, extra_bytes):
            return "accepted", read()
    except OutOfTimeError as error:
        return "hangs", error
    except refusals as error:
        text = str(error)
        is_clear = bool(text) and "\n" not in text and len(text) <= MAX_MESSAGE
        return ("refused" if is_clear and not _is_theirs(error) else "unclear"), error
    except Exception as error:
        return "unclear", error


def _is_theirs(error: BaseException) -> bool:
    """Whether a library raised it, which knows neither the file nor the way out."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    file = frame.f_code.co_filename
    return file.startswith((*LIBRARIES, "<frozen"))


def _stop(*_: object) -> None:
    raise OutOfTimeError


def _address_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
