"""The models of both benchmarks of predictions on a CPU: three to calibrate on and six others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from paceline.torch.predict import TimedModel


class Residual(nn.Module):
    """Adds what its layers make of the input to the input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> Any:
        """Run the model."""
        return x + self.body(x)


class LastOf(nn.Module):
    """A recurrent layer over embedded tokens, then a classifier on the last position."""

    def __init__(self, kind: type[nn.LSTM], num_tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_tokens, width)
        self.rnn = kind(width, hidden, num_layers=2, batch_first=True)
        self.head = nn.Linear(hidden, 20)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Run the model."""
        out, _ = self.rnn(self.embed(tokens))
        return self.head(out[:, -1])


class Decoder(nn.Module):
    """A causal transformer over tokens, blocks before norms as in GPT-2."""

    def __init__(self, num_tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_tokens, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, num_tokens)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Run the model."""
        x = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in self.blocks:
            x = block(x, src_mask=mask, is_causal=True)
        return self.head(x)


class Patches(nn.Module):
    """A vision transformer: patches by a strided convolution, encoder, mean."""

    def __init__(self, side: int, patch: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(torch.zeros(1, (side // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 3 * width, activation="relu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 100)

    def forward(self, x: torch.Tensor) -> Any:
        """Run the model."""
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))


class GraphNet(nn.Module):
    """Rounds of message passing: gather along edges, sum by target."""

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.messages = nn.ModuleList(nn.Linear(width, width) for _ in range(rounds))
        self.updates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))

    def forward(self, x: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> Any:
        """Run the model."""
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = message(x)[source]
            received = torch.zeros_like(x).index_add(0, target, sent)
            x = torch.relu(update(torch.cat([x, received], dim=1)))
        return x


def graph(width: int, degree: int) -> Callable[[int], Any]:
    def inputs(num_nodes: int) -> Any:
        edges = torch.arange(degree * num_nodes)
        return torch.randn(num_nodes, width), edges * 31 % num_nodes, edges * 17 % num_nodes

    return inputs


def perceptron(width: int, hidden: int, depth: int) -> Callable[[], nn.Module]:
    def build_it() -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(width, hidden)]
        for _ in range(depth):
            layers += [nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden)]
        return nn.Sequential(*layers, nn.Linear(hidden, 10))

    return build_it


def convnet(widths: tuple[int, ...], residual: bool) -> Callable[[], nn.Module]:
    def build_it() -> nn.Module:
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
            if residual:
                conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
                layers.append(Residual(conv, nn.BatchNorm2d(width), nn.ReLU()))
            before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))

    return build_it


def calibration_models() -> list[TimedModel]:
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    return [
        TimedModel(perceptron(200, 300, 3), torch.zeros(1, 200), (16, 256), "AdamW"),
        TimedModel(convnet((24, 48, 96), False), torch.zeros(1, 3, 32, 32), (8, 48), "SGD"),
        TimedModel(lambda: Decoder(500, 96, 6, 3), tokens, (4, 24), "AdamW"),
    ]


def test_models() -> dict[str, TimedModel]:
    words = torch.zeros(1, 40, dtype=torch.int64)
    text = torch.zeros(1, 100, dtype=torch.int64)
    return {
        "MLP": TimedModel(perceptron(784, 512, 2), torch.zeros(1, 784), (32, 128, 512), "Adam"),
        "CNN": TimedModel(
            convnet((32, 64, 128), True), torch.zeros(1, 3, 32, 32), (8, 32, 64), "SGD"
        ),
        "RNN": TimedModel(lambda: LastOf(nn.LSTM, 2000, 64, 160), words, (8, 32, 96), "Adam"),
        "transformer": TimedModel(lambda: Decoder(1000, 160, 5, 4), text, (2, 8, 20), "AdamW"),
        "ViT-like": TimedModel(
            lambda: Patches(48, 8, 144, 3, 6), torch.zeros(1, 3, 48, 48), (4, 16, 48), "AdamW"
        ),
        "GNN-like": TimedModel(lambda: GraphNet(48, 3), graph(48, 6), (300, 1500, 6000), "Adam"),
    }
