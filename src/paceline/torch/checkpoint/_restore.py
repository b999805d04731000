"""Put a checkpoint into the objects of a run."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from paceline.errors import StateMismatchError
from paceline.torch.balance import BalancedBatchSampler, BatchPass
from paceline.torch.checkpoint._fill import check_same_tensors
from paceline.torch.checkpoint._random_state import restore, state_of_rank
from paceline.torch.checkpoint._whole import Content

PARTS = {"step", "model", "stateful", "random"}


def restore_run(
    content: Content,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None,
    stateful: Mapping[str, Any],
    rank: int,
) -> None:
    """Load all states; what can refuse its own does so before the model is changed.

    Raises:
        StateMismatchError: If the checkpoint does not hold what is asked for, or is of another
            model or optimizer.
    """
    state = content.state
    _check_names(content, stateful, has_optimizer=optimizer is not None)
    check_same_tensors(model.state_dict(), state["model"], "the model")
    if optimizer is not None:
        _check_groups(optimizer, state["optimizer"])
    for name, one in stateful.items():
        one.load_state_dict(state["stateful"][name])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    model.load_state_dict(state["model"])
    own = state_of_rank(rank, state["random"])
    restore(own)
    _restore_again_with_data(stateful.get("data"), own)


def _check_names(content: Content, stateful: Mapping[str, Any], *, has_optimizer: bool) -> None:
    if not (isinstance(content.state, dict) and set(content.state) >= PARTS):
        raise StateMismatchError(
            f"{content.path} was not written by paceline.Checkpoint; read it with AsyncCheckpoint"
        )
    saved = {*content.state["stateful"], *({"optimizer"} & set(content.state))}
    wanted = {*stateful, *({"optimizer"} if has_optimizer else ())}
    if wanted - saved:
        raise StateMismatchError(
            f"{content.path} does not hold {', '.join(sorted(wanted - saved))}; it holds model, "
            f"{', '.join(sorted(saved))}; make the Checkpoint as it was when this was saved"
        )
    if saved - wanted:
        warnings.warn(
            f"{content.path} also holds {', '.join(sorted(saved - wanted))}, which is not resumed, "
            "because this Checkpoint was made without it",
            stacklevel=4,
        )


def _check_groups(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    here = [len(group["params"]) for group in optimizer.param_groups]
    there = [len(group["params"]) for group in saved["param_groups"]]
    if here != there:
        raise StateMismatchError(
            f"the optimizer has groups of {here} parameters, and groups of {there} were saved; "
            "make it as it was"
        )


def _restore_again_with_data(data: Any, state: Any) -> None:
    """Restore random states once more when the rest of the epoch begins.

    Each `iter()` of a torch DataLoader draws a number, and going on inside an epoch needs one
    that the undisturbed run did not.
    """
    sampler = data.batch_sampler if isinstance(data, DataLoader) else data
    if not isinstance(sampler, BalancedBatchSampler):
        return
    begin = sampler.cursor
    if not (begin.num_steps or begin.earlier):
        return
    waiting = [state]

    def begun(run: BatchPass) -> None:
        for own in waiting[:]:
            waiting.clear()
            if run.begin.epoch == begin.epoch:
                restore(own)

    sampler.on_begin(begun)
