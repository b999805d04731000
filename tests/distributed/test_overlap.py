"""Split backward passes under ScheduledDataParallel, on two gloo ranks that share a spawn."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paceline.overlap import LanePlan, defer_all
from paceline.testing import run_ranks
from paceline.torch import ScheduledDataParallel
from paceline.torch.overlap.split._split_backward import split_backward

NUM_STEPS = 16


class Tied(nn.Module):
    """The head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + layer(x).relu()
        return nn.functional.linear(self.norm(x), self.embed.weight)


def train(
    model: nn.Module, rank: int, way: str, plan: LanePlan | None
) -> tuple[list[torch.Tensor], str]:
    """Train with the backward pass split before or after wrapping, or not at all."""
    split = split_backward(model, plan=plan) if way == "before" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduled = ScheduledDataParallel(model, optimizer, num_measure_steps=4)
    if way == "after":
        split = split_backward(model, plan=plan)
    for step in range(NUM_STEPS):
        draw = torch.Generator().manual_seed(100 * step + rank)
        with scheduled.no_sync():
            backward(scheduled, draw)
        backward(scheduled, draw)
        scheduled.step()
    found = [value.detach().clone() for value in scheduled.parameters()]
    explained = "" if split is None else split.explain()
    scheduled.close()
    if split is not None:
        split.close()
    return found, explained


def backward(model: nn.Module, draw: torch.Generator) -> None:
    tokens = torch.randint(0, 30, (4, 5), generator=draw)
    model(tokens).square().mean().backward()


def check(rank: int, out: str) -> None:
    torch.manual_seed(0)
    model = Tied()
    expected, _ = train(copy.deepcopy(model), rank, "never", None)
    found: dict[str, Any] = {}
    for name, way, plan in (
        ("before", "before", defer_all()),
        ("after", "after", defer_all(max_pending=2)),
        ("trial", "before", None),
    ):
        ours, explained = train(copy.deepcopy(model), rank, way, plan)
        same = all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
        found[name] = {"same": same, "explained": explained}
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def test_scheduled_training_is_bitwise_the_same_with_a_split_backward_pass(tmp_path: Path) -> None:
    run_ranks(check, 2, str(tmp_path))
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert all(case["same"] for case in found.values()), found
        assert "all layers are deferred" in found["before"]["explained"]
