"""What an optimizer refuses while the parts of its state lie with the ranks, and afterwards."""

import torch
from torch.utils.hooks import RemovableHandle

from paceline.torch.comm.sharded._update import ShardedUpdate


class Custody:
    """Hooks by which an optimizer refuses to tell its state, and hands on what it is given.

    Args:
        optimizer: The user's.
        update: Holds the own parts of its state.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, update: ShardedUpdate) -> None:
        self._optimizer, self._update = optimizer, update
        self._handles = [
            optimizer.register_state_dict_pre_hook(_refuse),
            optimizer.register_load_state_dict_post_hook(lambda _: update.adopt()),
        ]

    def end(self) -> None:
        """Remove the hooks; if there is state that was not given back, it is lost."""
        if not self._handles:
            return
        while self._handles:
            self._handles.pop().remove()
        if self._update.forget():
            _refuse_until_loaded(self._optimizer)


def _refuse(_optimizer: torch.optim.Optimizer) -> None:
    raise RuntimeError(
        "with sharded=True each rank holds a part of the optimizer's state; call "
        "model.optimizer_state_dict() on all ranks, and save what rank 0 gets, or model.close() "
        "first"
    )


def _refuse_until_loaded(optimizer: torch.optim.Optimizer) -> None:
    """Adam would begin anew from zeros, and nobody would notice."""

    def lift(*_: object) -> None:
        while handles:
            handles.pop().remove()

    handles: list[RemovableHandle] = [
        optimizer.register_state_dict_pre_hook(_lost),
        optimizer.register_step_pre_hook(_lost),
        optimizer.register_load_state_dict_pre_hook(lift),
    ]


def _lost(*_: object) -> None:
    raise RuntimeError(
        "this rank's part of the optimizer's state went with a model with sharded=True that was "
        "left without close() on all ranks; load a whole state, as from a checkpoint, first"
    )
