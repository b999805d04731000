"""Which checkpoint to go on from: rank 0 chooses, and all ranks read the same one."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import distributed as dist

from paceline.errors import CheckpointError
from paceline.torch.checkpoint._agree import gather
from paceline.torch.checkpoint._folder import Folder
from paceline.torch.checkpoint._whole import Content, read_content


def agreed_content(
    folder: Folder, group: dist.ProcessGroup | None, rank: int, *, strict: bool
) -> Content | None:
    """Return the newest whole checkpoint as this rank read it, None if there is none.

    Raises:
        CheckpointError: On all ranks, if one of them cannot use it.
    """
    chosen = _chosen(folder, strict=strict) if rank == 0 else _Choice()
    content = chosen.content
    choice = gather(
        {
            "name": content and content.path.name,
            "digest": content and content.digest,
            "failure": chosen.failure,
        },
        group,
    )[0]
    if choice["failure"] is not None:
        raise CheckpointError(choice["failure"])
    if choice["name"] is None:
        return None
    failure = None
    if rank != 0:
        content, failure = _read_the_same(folder, choice["name"], choice["digest"])
    _raise_if_any_failed(gather({"failure": failure}, group), folder)
    if chosen.damaged and content is not None:
        warnings.warn(
            f"going back to {content.path}, because {'; '.join(chosen.damaged)}", stacklevel=3
        )
    return content


@dataclass(slots=True)
class _Choice:
    content: Content | None = None
    failure: str | None = None
    damaged: list[str] = field(default_factory=list)


def _chosen(folder: Folder, *, strict: bool) -> _Choice:
    """Find the newest that is whole; errors are returned, so that other ranks learn of them."""
    found = _Choice()
    try:
        folder.tidy()
        for path in folder.newest_first():
            if strict:
                found.content = folder.read(path)
            else:
                found.content = _read_unless_damaged(path, found.damaged)
            if found.content is not None:
                return found
    except (OSError, CheckpointError) as error:
        found.failure = str(error)
        return found
    if found.damaged:
        found.failure = (
            f"no checkpoint in {folder.path} is whole: {'; '.join(found.damaged)}; restore one of "
            "them, or remove the folder to begin anew"
        )
    return found


def _read_unless_damaged(path: Path, damaged: list[str]) -> Content | None:
    try:
        return read_content(path)
    except CheckpointError as error:
        damaged.append(str(error))
        return None


def _raise_if_any_failed(told: list[dict[str, Any]], folder: Folder) -> None:
    failed = [f"rank {rank}: {one['failure']}" for rank, one in enumerate(told) if one["failure"]]
    if failed:
        raise CheckpointError(
            f"{failed[0]}; {len(failed)} of {len(told)} ranks could not read what rank 0 read, "
            f"and all must see one folder {folder.path}; nothing was changed"
        )


def _read_the_same(folder: Folder, name: str, digest: str) -> tuple[Content | None, str | None]:
    try:
        content = read_content(folder.path / name)
    except CheckpointError as error:
        return None, str(error)
    if content.digest != digest:
        return None, f"{content.path} is not the checkpoint that rank 0 read"
    return content, None
