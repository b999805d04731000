"""Start ranks again after each fault, as torchrun does, and say how each launch ended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paceline.errors import RankFailedError
from paceline.testing._spawn import run_ranks
from paceline.testing.faults._fault import Fault

End = Literal["completed", "failed", "hangs"]


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of all ranks.

    Attributes:
        num_ranks: How many.
        fault: What was to happen.
        end: `"completed"` if all ranks returned.
        error: Why not, with the traceback of the rank that failed first.
    """

    num_ranks: int
    fault: Fault | None
    end: End
    error: str = ""


class _LateError(Exception):
    """Ranks did not end in time."""


def launch(
    function: Callable[..., None],
    num_ranks: int,
    fault: Fault | None,
    *args: Any,
    limit_s: float = 60.0,
) -> Launch:
    """Run `function(rank, fault, *args)` on ranks until it ends, fails, or `limit_s` is over.

    See `paceline.testing.run_ranks`. The function calls `fault.at(rank, step)` in its loop, if
    there is a fault.
    """
    deadline_s = time.monotonic() + limit_s

    def wait() -> None:
        if time.monotonic() > deadline_s:
            raise _LateError

    try:
        run_ranks(function, num_ranks, fault, *args, timeout_s=limit_s, while_waiting=wait)
    except _LateError:
        return Launch(num_ranks, fault, "hangs", f"ranks were still running after {limit_s:g} s")
    except RankFailedError as error:
        return Launch(num_ranks, fault, "failed", str(error))
    return Launch(num_ranks, fault, "completed")


def run_through(
    function: Callable[..., None],
    num_ranks: Sequence[int],
    faults: Sequence[Fault],
    *args: Any,
    limit_s: float = 60.0,
) -> list[Launch]:
    """Launch with each fault in turn, then once more without one; stop where a launch hangs.

    Args:
        function: As for `launch`; it resumes from what the launch before has saved.
        num_ranks: Of each launch; one more than there are faults, or one for all.
        faults: In the order in which they happen.
        *args: Passed on.
        limit_s: How long one launch may take.

    Raises:
        ValueError: If there is another number of launches than of faults and one.
    """
    sizes = [*num_ranks] * (len(faults) + 1) if len(num_ranks) == 1 else [*num_ranks]
    if len(sizes) != len(faults) + 1:
        raise ValueError(
            f"num_ranks must hold one number, or one per fault and one more ({len(faults) + 1}), "
            f"got {len(sizes)}"
        )
    found: list[Launch] = []
    for size, fault in zip(sizes, [*faults, None], strict=True):
        found.append(launch(function, size, fault, *args, limit_s=limit_s))
        if found[-1].end == "hangs":
            break
    return found
