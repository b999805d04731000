"""One way to compile the hot loops of the pure rooms."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile `function` with numba on its first call, without the interpreter lock.

    The machine code is kept beside the source or in the user's cache folder, so
    that a second process starts at once. Where neither can be written to, each
    process compiles anew. Floating-point operations are not reordered: plans must
    be equal on every platform.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba found no folder that it can write to
        return cast(F, numba.njit(nogil=True)(function))
