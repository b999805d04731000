"""Workers that share the cores of one machine slow each other, as long as they compute at once."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def shared_cores_s(work_s: ArrayLike, slowdown: ArrayLike) -> NDArray[np.float64]:
    """Return when each worker of a step has done its work, if they begin together.

    Whoever has ended leaves its share of the machine to the others: processor sharing, with the
    rates that were measured [1].

    Args:
        work_s: Seconds of work of each worker as long as all of them compute, shape
            `(num_steps, num_workers)`.
        slowdown: Seconds of the same work while 1, 2, ... workers compute at once, in any unit;
            one for each worker, not falling.

    Returns:
        Seconds, same shape, at most `work_s`.

    Raises:
        ValueError: If `slowdown` has another length, falls, or is not positive.

    Examples:
        >>> shared_cores_s([[2.0, 6.0]], slowdown=[1.0, 2.0]).tolist()  # one core
        [[2.0, 4.0]]
        >>> shared_cores_s([[2.0, 6.0]], slowdown=[1.0, 1.0]).tolist()  # a core each
        [[2.0, 6.0]]

    References:
        [1] L. Kleinrock, "Time-shared systems: a theoretical treatment", Journal of the ACM 14(2),
        1967.
    """
    slower = np.asarray(slowdown, np.float64)
    return _paced(work_s, slower, slower[::-1] / slower[-1:])


def shared_work_s(end_s: ArrayLike, slowdown: ArrayLike) -> NDArray[np.float64]:
    """Return the work of which `shared_cores_s` makes `end_s`; its arguments and errors.

    Examples:
        >>> shared_work_s([[2.0, 4.0]], slowdown=[1.0, 2.0]).tolist()
        [[2.0, 6.0]]
    """
    slower = np.asarray(slowdown, np.float64)
    return _paced(end_s, slower, slower[-1:] / slower[::-1])


def _paced(
    seconds: ArrayLike, slower: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Scale the time from one end to the next; the first is with all of them there."""
    given = np.asarray(seconds, np.float64)
    if slower.shape != given.shape[1:] or not (slower > 0).all() or (np.diff(slower) < 0).any():
        raise ValueError(
            f"slowdown must hold {given.shape[1]} positive numbers that do not fall, got "
            f"{slower.tolist()}"
        )
    order = np.argsort(given, axis=1, kind="stable")
    more = np.diff(np.take_along_axis(given, order, axis=1), axis=1, prepend=0.0)
    found = np.empty_like(given)
    np.put_along_axis(found, order, np.cumsum(more * factor, axis=1), axis=1)
    return found
