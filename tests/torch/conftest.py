"""A clock that moves only when a test says so, modules that spend its time, and devices."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

NEEDS_CUDA = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


class FakeClock:
    """Time is what was spent, plus `per_mark_s` for each mark."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.per_mark_s = 0.0
        self.num_reads = 0

    def mark(self) -> object:
        self.now_s += self.per_mark_s
        return self.now_s

    def seconds(self, marks: Sequence[object]) -> list[float]:
        self.num_reads += 1
        return [mark for mark in marks if isinstance(mark, float)]

    def spend(self, x: torch.Tensor, forward_s: float, backward_s: float) -> torch.Tensor:
        """Return `x`; passing it takes `forward_s`, and its gradient `backward_s`."""
        result: torch.Tensor = _Spend.apply(x, self, forward_s, backward_s)
        return result


class _Spend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, clock: FakeClock, forward_s: float, backward_s: float
    ) -> torch.Tensor:
        ctx.clock, ctx.backward_s = clock, backward_s
        clock.now_s += forward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        ctx.clock.now_s += ctx.backward_s
        return grads[0], None, None, None


class Timed(nn.Module):
    """Takes set times; with a weight it is a layer, without one an activation."""

    def __init__(
        self, clock: FakeClock, forward_s: float, backward_s: float, *, has_weight: bool = True
    ) -> None:
        super().__init__()
        self.clock, self.forward_s, self.backward_s = clock, forward_s, backward_s
        self.weight = nn.Parameter(torch.ones(1)) if has_weight else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = x if self.weight is None else x * self.weight
        return self.clock.spend(scaled, self.forward_s, self.backward_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    for module in ("_watch", "_job"):
        monkeypatch.setattr(f"paceline.torch.measure.{module}.clock_of", lambda _: fake)
    return fake


@pytest.fixture
def timed(clock: FakeClock) -> type[Timed]:
    """`timed(clock, forward_s, backward_s)` makes a module on the fake clock."""
    return Timed
