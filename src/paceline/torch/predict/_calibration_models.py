"""The small models whose steps are timed to learn what operators cost on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from paceline.torch.predict._trace_setup import ExampleInput


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A small model and the batches to run it on.

    Attributes:
        build: Makes the model.
        example_input: As for `trace_workload`.
        batch_sizes: Each is timed.
        optimizer: Class name in `torch.optim`.
    """

    build: Callable[[], nn.Module]
    example_input: ExampleInput
    batch_sizes: tuple[int, ...]
    optimizer: str = "SGD"


def standard_models() -> list[TimedModel]:
    """Return small models that run every class of operator at several sizes."""
    small, large = (4, 64), (16, 256)
    return [
        *(
            TimedModel(_linears(width, hidden), torch.zeros(1, width), sizes, optimizer)
            for width, hidden, sizes, optimizer in (
                (32, 64, (8, 128), "SGD"),
                (128, 512, large, "AdamW"),
                (512, 1024, (32, 512), "SGD"),
                (64, 256, (1024, 4096), "Adam"),
            )
        ),
        *(
            TimedModel(_convolutions(channels, kernel), torch.zeros(1, 3, side, side), sizes, "SGD")
            for channels, kernel, side, sizes in (
                (8, 3, 16, small),
                (16, 5, 32, (4, 32)),
                (32, 3, 32, (8, 32)),
                (64, 1, 16, (8, 32)),
                (64, 3, 8, (16, 64)),
            )
        ),
        *(
            TimedModel(
                _attention(width, heads, drop), torch.zeros(1, length, width), sizes, "AdamW"
            )
            for width, heads, length, drop, sizes in (
                (32, 2, 16, 0.1, small),
                (64, 4, 64, 0.1, (4, 32)),
                (128, 8, 128, 0.1, (2, 16)),
                (256, 4, 32, 0.1, (4, 32)),
                (32, 2, 32, 0.0, (8, 64)),
                (64, 4, 128, 0.0, (2, 16)),
                (192, 3, 64, 0.0, (4, 16)),
            )
        ),
        *(
            TimedModel(_recurrence(kind, width), torch.zeros(1, length, width), sizes, "SGD")
            for kind, width, length, sizes in (
                (nn.LSTM, 32, 16, small),
                (nn.LSTM, 128, 32, (8, 64)),
                (nn.LSTM, 256, 8, (16, 128)),
                (nn.GRU, 64, 16, (8, 64)),
            )
        ),
        *(
            TimedModel(
                _rows(num_rows, width), torch.zeros(1, 32, dtype=torch.int64), (8, 128), "SGD"
            )
            for num_rows, width in ((1000, 32), (4000, 64), (8000, 128))
        ),
        *(TimedModel(_messages(width), _graph(width), (256, 4096), "Adam") for width in (16, 64)),
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


def _graph(width: int) -> Callable[[int], Any]:
    def inputs(num_nodes: int) -> Any:
        edges = torch.arange(4 * num_nodes) * 7919 % num_nodes
        return torch.randn(num_nodes, width), edges, edges.flip(0)

    return inputs


def _linears(width: int, hidden: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.LayerNorm(hidden),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(hidden, width),
        nn.Tanh(),
        nn.Softmax(-1),
    )


def _convolutions(channels: int, kernel: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, padding=kernel // 2),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.Conv2d(channels, 2 * channels, 1, stride=2),
        nn.SiLU(),
        nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )


def _attention(width: int, heads: int, dropout: float) -> Callable[[], nn.Module]:
    """With dropout, attention runs as single products; without, as one fused operator."""
    return lambda: nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )


def _recurrence(kind: type[nn.LSTM] | type[nn.GRU], width: int) -> Callable[[], nn.Module]:
    return lambda: _Recurrent(kind, width)


def _rows(num_rows: int, width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(num_rows, width), nn.Linear(width, width))


def _messages(width: int) -> Callable[[], nn.Module]:
    return lambda: _Messages(width)
