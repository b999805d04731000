"""Load what most ranks use, in the server that forks them: each would take half a second for it."""

import numba

import paceline.torch

for _name in paceline.torch.__all__:
    getattr(paceline.torch, _name)


def _same(value: int) -> int:
    return value


# Compiling anything loads what numba knows of Python and NumPy. It starts no threads of its own,
# and those of the BLAS that it imports are gone before the server forks: BLAS sees to that.
numba.njit("int64(int64)")(_same)
