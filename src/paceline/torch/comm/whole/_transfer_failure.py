"""What is said when a block does not get through."""

from collections.abc import Iterable

from paceline.errors import TransferError


def transfer_failure(
    rank: int, block: int, num_blocks: int, names: Iterable[str], error: Exception
) -> TransferError:
    """Return an error that names the rank, the block and its parameters, each once."""
    distinct = list(dict.fromkeys(names))
    shown = distinct[0] if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"
    return TransferError(
        f"rank {rank}: block {block} of {num_blocks} ({shown}) did not get through ({error}); "
        "another rank has ended or the link is down; start again from the last checkpoint"
    )
