from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from paceline.predict import MemoryMoment, estimate_memory
from paceline.torch.predict._trace import trace_workload
from paceline.torch.predict._trace_memory import LiveMemory


def test_moments_are_those_that_are_the_fullest_for_some_batch() -> None:
    weight = torch.zeros(10)
    memory = LiveMemory([weight])
    x, activation = torch.zeros(25), torch.zeros(50)
    memory.add({"x": x, "again": [x.view(5, 5), weight]})
    memory.add(activation)
    memory.begin("backward")
    first, second = torch.zeros(10), torch.zeros(1000)
    memory.add(first)
    del activation
    memory.add(second)
    memory.fix(first)
    memory.fix(second)
    memory.begin("optimizer")
    memory.add(torch.zeros(5))
    assert memory.moments(batch_size=5) == (
        MemoryMoment(phase="backward", bytes_per_example=60.0, other_bytes=40),
        MemoryMoment(phase="backward", bytes_per_example=20.0, other_bytes=4040),
        MemoryMoment(phase="optimizer", bytes_per_example=20.0, other_bytes=4060),
    )


def test_an_optimizer_that_makes_nothing_begins_with_what_was_left() -> None:
    memory = LiveMemory([])
    left = torch.zeros(3)
    memory.add([torch.zeros(100), left])
    assert memory.moments(batch_size=1)[-1] == MemoryMoment(
        phase="optimizer", bytes_per_example=12.0, other_bytes=0
    )


def linear() -> nn.Module:
    return nn.Linear(16, 16)


def test_what_is_not_trained_is_held_whatever_the_batch() -> None:
    def model() -> nn.Module:
        frozen = nn.Linear(16, 16)
        frozen.register_buffer("mean", torch.zeros(100))
        return nn.Sequential(frozen.requires_grad_(False), nn.Linear(16, 16))

    bare, both = (trace_workload(m, input_shape=(16,), batch_size=2) for m in (linear, model))
    more = both.moments[-1].other_bytes - bare.moments[-1].other_bytes
    assert more == 4 * (16 * 16 + 16 + 100)


def test_inputs_stay_to_the_end() -> None:
    work = trace_workload(linear, input_shape=(16,), batch_size=2)
    assert work.moments[-1].bytes_per_example == 4 * 16


class Tied(nn.Module):
    """Uses its largest weight twice, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 32)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.embed(tokens).mean(1) @ self.embed.weight.t()


def convs_and_linears() -> nn.Module:
    convs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(convs, *(nn.Linear(288, 288) for _ in range(6)))


IMAGES, TOKENS = torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, dtype=torch.int64)


@pytest.mark.parametrize("batch_size", [4, 512])
@pytest.mark.parametrize(
    ("model", "example", "bits"),
    [(convs_and_linears, IMAGES, 32), (convs_and_linears, IMAGES, 16), (Tied, TOKENS, 32)],
)
def test_one_trace_tells_the_peak_at_other_batches(
    model: Callable[[], nn.Module], example: torch.Tensor, bits: int, batch_size: int
) -> None:
    traced, told = (
        trace_workload(model, example, batch_size=traced_size, precision=bits)
        for traced_size in (batch_size, 32)
    )
    peak = estimate_memory(told.with_batch_size(batch_size), foreach=False).peak
    assert peak == pytest.approx(estimate_memory(traced, foreach=False).peak, rel=0.01)
