"""Put into words which ranks are awaited, and where they were seen last."""

from collections.abc import Mapping
from time import monotonic, sleep

from paceline.torch.guard._board import Board, Seen
from paceline.torch.guard._progress import Place

NUM_NAMED = 8


def awaited(board: Board, own: Place) -> str:
    """Name the ranks that are silent, have left, or are behind the first one."""
    if board.failure or board.silent_store_s:
        return _store_text(board)
    view = board.view()
    late = _behind(view, own, board)
    if not late:
        return "all ranks are alive and at the same place"
    texts = [_text(rank, seen, board) for rank, seen in list(late.items())[:NUM_NAMED]]
    rest = [f"{len(late) - NUM_NAMED} more"] * (len(late) > NUM_NAMED)
    return f"not arrived: {', '.join([*texts, *rest])}"


def gone(board: Board, rank: int) -> str:
    """Return which ranks besides `rank` are silent or have left; empty if none.

    For an error whose cause may be another rank. Takes a few beats.
    """
    board.watch(wanted=True)
    while not (board.is_settled or board.failure):
        sleep(board.beat_s)
    if board.failure or board.silent_store_s:
        return _store_text(board)
    others = {other: seen for other, seen in _gone(board).items() if other != rank}
    return ", ".join(_text(other, seen, board) for other, seen in others.items())


def _gone(board: Board) -> dict[int, Seen]:
    view = board.view()
    return {rank: seen for rank, seen in view.items() if seen.left or board.is_silent(seen)}


def _behind(view: Mapping[int, Seen], own: Place, board: Board) -> dict[int, Seen]:
    if missing := _gone(board):
        return missing
    first = max([own, *(seen.place for seen in view.values())])
    return {rank: seen for rank, seen in view.items() if seen.place < first}


def _text(rank: int, seen: Seen, board: Board) -> str:
    now_s = monotonic()
    if seen.left:
        return f"rank {rank} ({seen.left} in {seen.place})"
    where = f"{seen.place} for {now_s - seen.since_s:.1f} s"
    if not board.is_silent(seen):
        return f"rank {rank} ({where})"
    silent_s = now_s - seen.heard_s
    return f"rank {rank} ({where}; no sign of life for at least {silent_s:.1f} s: stopped or dead)"


def _store_text(board: Board) -> str:
    reason = board.failure or f"no answer for {board.silent_store_s:.1f} s"
    return (
        f"the store of the process group does not answer ({reason}): the process that hosts it, "
        "torchrun's or else rank 0, may be stopped or dead"
    )
