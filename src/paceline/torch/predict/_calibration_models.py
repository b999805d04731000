"""The small models whose steps are timed to learn what operators cost on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.torch.predict._trace_setup import ExampleInput


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A small model and the batches to run it on."""

    build: Callable[[], nn.Module]  # makes the model
    example_input: ExampleInput  # as for `trace_workload`
    batch_sizes: tuple[int, ...]  # each is timed
    optimizer: str = "SGD"  # class name in `torch.optim`


def standard_models() -> list[TimedModel]:
    """Return small models that run every class of operator at several sizes."""
    small = (4, 64)
    return [
        _linears(32, 64, (8, 128), "SGD"),
        _linears(128, 512, (16, 256), "AdamW"),
        _linears(512, 1024, (32, 512), "SGD"),
        _linears(64, 256, (1024, 4096), "Adam"),
        _convolutions(8, 3, 16, small),
        _convolutions(16, 5, 32, (4, 32)),
        _convolutions(32, 3, 32, (8, 32)),
        _convolutions(64, 1, 16, (8, 32)),
        _convolutions(64, 3, 8, (16, 64)),
        _attention(32, 2, 16, 0.1, small),
        _attention(64, 4, 64, 0.1, (4, 32)),
        _attention(128, 8, 128, 0.1, (2, 16)),
        _attention(256, 4, 32, 0.1, (4, 32)),
        _attention(32, 2, 32, 0.0, (8, 64)),
        _attention(64, 4, 128, 0.0, (2, 16)),
        _attention(192, 3, 64, 0.0, (4, 16)),
        _recurrence(nn.LSTM, 32, 16, small),
        _recurrence(nn.LSTM, 128, 32, (8, 64)),
        _recurrence(nn.LSTM, 256, 8, (16, 128)),
        _recurrence(nn.GRU, 64, 16, (8, 64)),
        *(_rows(num_rows, width) for num_rows, width in ((1000, 32), (4000, 64), (8000, 128))),
        *(_messages(width) for width in (16, 64)),
    ]


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], width: int) -> None:
        super().__init__()
        self.rnn = kind(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rnn(x)[0]


class _Messages(nn.Module):
    """One round of message passing: rows gathered, transformed and summed by index."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> Any:
        messages = torch.relu(self.linear(x))[source]
        return x + torch.zeros_like(x).index_add(0, target, messages)


def _linears(width: int, hidden: int, sizes: tuple[int, ...], optimizer: str) -> TimedModel:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.LayerNorm(hidden),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(hidden, width), nn.Tanh(), nn.Softmax(-1),
        )  # fmt: skip

    return TimedModel(build, torch.zeros(1, width), sizes, optimizer)


def _convolutions(channels: int, kernel: int, side: int, sizes: tuple[int, ...]) -> TimedModel:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels),
            nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv2d(channels, 2 * channels, 1, stride=2), nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), nn.Sigmoid(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * channels, 10),
        )  # fmt: skip

    return TimedModel(build, torch.zeros(1, 3, side, side), sizes)


def _attention(
    width: int, heads: int, length: int, dropout: float, sizes: tuple[int, ...]
) -> TimedModel:
    """With dropout, attention runs as single products; without, as one fused operator."""

    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )

    return TimedModel(build, torch.zeros(1, length, width), sizes, "AdamW")


def _recurrence(
    kind: type[nn.LSTM] | type[nn.GRU], width: int, length: int, sizes: tuple[int, ...]
) -> TimedModel:
    return TimedModel(lambda: _Recurrent(kind, width), torch.zeros(1, length, width), sizes)


def _rows(num_rows: int, width: int) -> TimedModel:
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(num_rows, width), nn.Linear(width, width))

    return TimedModel(build, torch.zeros(1, 32, dtype=torch.int64), (8, 128))


def _messages(width: int) -> TimedModel:
    def graph(num_nodes: int) -> Any:
        edges = torch.arange(4 * num_nodes) * 7919 % num_nodes
        return torch.randn(num_nodes, width), edges, edges.flip(0)

    return TimedModel(lambda: _Messages(width), graph, (256, 4096), "Adam")
