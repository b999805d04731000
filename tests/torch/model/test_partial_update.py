"""What `PartialUpdate` shares with `step()` beside its numbers."""

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from paceline.torch.model import PartialUpdate


def test_hooks_run_in_the_order_of_step() -> None:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: seen.append("own pre")),
        register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
        optimizer.register_step_post_hook(lambda *_: seen.append("own post")),
    ]
    try:
        optimizer.step()
        expected, seen[:] = list(seen), []
        update = PartialUpdate(optimizer)
        update.run_hooks(before=True)
        update.run_hooks(before=False)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == expected == ["global pre", "own pre", "own post", "global post"]
