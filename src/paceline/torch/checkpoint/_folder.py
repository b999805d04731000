"""The checkpoints of one run: which there are, and how one takes its place among them."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paceline.errors import CheckpointError
from paceline.torch.checkpoint._whole import (
    Content,
    read_content,
    sync_folder,
    why_damaged,
    write_content,
)

PREFIX, PARTIAL, REPLACED = "step_", ".partial_", ".replaced_"


class Folder:
    """A folder with one folder per checkpoint; one process may write to it.

    Args:
        path: Made when the first checkpoint is written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def newest_first(self) -> list[Path]:
        """Return the checkpoints; one that was not finished is not among them."""
        found = {
            int(path.name.removeprefix(PREFIX)): path
            for path in self.path.glob(f"{PREFIX}*")
            if re.fullmatch(rf"{PREFIX}\d+", path.name)
        }
        return [found[step] for step in sorted(found, reverse=True)]

    def latest(self) -> Path | None:
        """Return the newest."""
        return next(iter(self.newest_first()), None)

    def tidy(self) -> None:
        """Clean up after a process that died while it wrote."""
        for replaced in self.path.glob(f"{REPLACED}*"):
            place = self.path / replaced.name.removeprefix(REPLACED)
            if place.exists():
                shutil.rmtree(replaced)
            else:
                os.replace(replaced, place)
        for partial in self.path.glob(f"{PARTIAL}*"):
            shutil.rmtree(partial)

    def write(
        self, step: int, tree: Any, tensors: Mapping[str, torch.Tensor], *, keep: int
    ) -> Path:
        """Write a checkpoint beside its place, move it there, and remove old ones.

        A failure leaves nothing of it; whatever ends the process leaves all others whole.

        Args:
            step: Names it.
            tree: What `encode` returned.
            tensors: Those that it refers to.
            keep: How many may stay, this one among them.

        Returns:
            Its folder.
        """
        path = self.path / f"{PREFIX}{step:08d}"
        partial = self.path / f"{PARTIAL}{path.name}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_content(partial, tree, tensors)
            self._move(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        others = [other for other in self.newest_first() if other != path]
        for other in others[keep - 1 :]:
            # Renamed first, so that none that is half removed seems to be one.
            os.replace(other, self.path / f"{PARTIAL}{other.name}")
            shutil.rmtree(self.path / f"{PARTIAL}{other.name}")
        return path

    def read(self, path: Path) -> Content:
        """Read the checkpoint at `path`.

        Raises:
            CheckpointError: If it is not whole; says what is wrong, and which older one is whole.
        """
        try:
            return read_content(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._older_whole(path)}") from error

    def _move(self, partial: Path, path: Path) -> None:
        replaced = self.path / f"{REPLACED}{path.name}"
        if path.exists():  # Saved anew after going back to an older one.
            os.replace(path, replaced)
        os.replace(partial, path)
        sync_folder(self.path)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _older_whole(self, path: Path) -> str:
        there = self.newest_first()
        older = there[there.index(path) + 1 :] if path in there else there
        whole = next((one for one in older if one != path and why_damaged(one) is None), None)
        return "no older checkpoint is whole" if whole is None else f"{whole} is older and whole"
