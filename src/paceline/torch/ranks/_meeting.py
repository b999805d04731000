"""Wait for the other ranks, not for ever, and name those that do not come."""

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

from paceline.errors import RankStalledError

LOGGER = logging.getLogger("paceline")
PATIENCE_S, MEETING_S = 10.0, 300.0
NUM_NAMED = 8


def meet(
    place: str,
    group: dist.ProcessGroup | None,
    *,
    timeout_s: float = MEETING_S,
    way_out: str = "every rank must call it",
) -> None:
    """Wait until all ranks of `group` are at `place`; a collective that follows is safe.

    Asks the store of the process group, so a rank that is elsewhere disturbs nothing. Logs a
    warning to the logger `"paceline"` after 10 s.

    Args:
        place: What all ranks call, as a user names it.
        group: The ranks; unset for the default group.
        timeout_s: Seconds to wait.
        way_out: Ends the message.

    Raises:
        RankStalledError: After `timeout_s`; names the ranks that did not come.
    """
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    own = dist.get_rank()
    store = PrefixStore("paceline/meetings", own_store(group))
    # How often this rank was here tells one meeting from the next.
    number = store.add(f"{place}/{own}", 1)
    gate = f"{place}/all/{number}"
    if store.add(f"{gate}/arrived", 1) == len(ranks):
        store.set(gate, "open")
    waited_s = 0.0
    # Not twice the same: to a store, no time to wait is for ever.
    for until_s in sorted({min(PATIENCE_S, timeout_s), timeout_s}):
        if _is_set(store, gate, until_s - waited_s):
            return
        waited_s = until_s
        missing = [rank for rank in ranks if store.add(f"{place}/{rank}", 0) < number]
        text = (
            f"rank {own} has waited {waited_s:g} s in {place} for {named(missing)}, which did not "
            f"come; {way_out}"
        )
        LOGGER.warning(text)
    # It counts as never having come, unless the last of the others comes this very moment.
    if store.add(f"{gate}/arrived", -1) == len(ranks) - 1:
        store.add(f"{gate}/arrived", 1)
        return
    store.add(f"{place}/{own}", -1)
    raise RankStalledError(text)


def named(ranks: Sequence[int]) -> str:
    """Return "rank 1" or "ranks 1, 2 and 5 more"; the first eight are named."""
    more = f" and {len(ranks) - NUM_NAMED} more" if len(ranks) > NUM_NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:NUM_NAMED]))}{more}"


def own_store(group: dist.ProcessGroup | None) -> Any:
    """Return the store of `group`, over a connection on which no other thread waits.

    Only a TCPStore has connections, and below PyTorch 2.8 it has one. Clones of a FileStore would
    delete its file as they end.
    """
    group = group or dist.group.WORLD
    assert group is not None, "ranks can only meet in a process group"
    store = root = dist.distributed_c10d._get_process_group_store(group)
    while isinstance(root, PrefixStore):
        root = root.underlying_store
    return store.clone() if isinstance(root, TCPStore) and hasattr(store, "clone") else store


def _is_set(store: PrefixStore, key: str, wait_s: float) -> bool:
    try:
        store.wait([key], timedelta(seconds=wait_s))
    except RuntimeError:  # Stores have types of their own for a time that is up.
        return store.check([key])
    return True
