from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from paceline.predict import estimate_memory
from paceline.testing._peak_memory import measure_peak_bytes
from paceline.torch.predict._trace import trace_workload
from paceline.torch.predict._trace_setup import StepSetup


class Encodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.encoder(self.embed(tokens))


def mlp() -> nn.Module:
    hidden = [nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.1)) for _ in range(4)]
    return nn.Sequential(nn.Linear(64, 128), *hidden, nn.Linear(128, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


TOKENS = torch.zeros(1, 16, dtype=torch.int64)


@pytest.mark.parametrize(
    ("model", "example", "batch_size", "optimizer"),
    [
        (mlp, torch.zeros(1, 64), 4, "SGD"),
        (mlp, torch.zeros(1, 64), 4, "AdamW"),
        (mlp, torch.zeros(1, 64), 256, "AdamW"),
        (cnn, torch.zeros(1, 3, 16, 16), 16, "SGD"),
        (Encodes, TOKENS, 1, "AdamW"),
        (Encodes, TOKENS, 64, "SGD"),
    ],
)
def test_the_predicted_peak_is_the_measured_one(
    model: Callable[[], nn.Module], example: torch.Tensor, batch_size: int, optimizer: str
) -> None:
    setup = StepSetup(batch_size=batch_size, optimizer=optimizer)
    measured = measure_peak_bytes(model, example, setup)
    work = trace_workload(model, example, batch_size=batch_size, optimizer=optimizer, kernels="cpu")
    # Kernels' scratch, which the trace does not see, differs between processors.
    assert estimate_memory(work, foreach=False).peak == pytest.approx(measured, rel=0.15)


def test_a_measured_step_counts_all_that_is_held() -> None:
    weights = 4 * 1000 * 1000
    setup = StepSetup(batch_size=1, optimizer="AdamW")
    measured = measure_peak_bytes(
        lambda: nn.Linear(1000, 1000, bias=False), torch.zeros(1, 1000), setup
    )
    # Weights, gradients, two moments, and in the update the root of one and its quotient.
    assert measured == pytest.approx(6 * weights, rel=0.01)


class Decodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 48)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(48, 4, 192, dropout=0.1, batch_first=True) for _ in range(3)
        )
        self.head = nn.Linear(48, 200)

    def forward(self, tokens: torch.Tensor) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    "recipe",
    [
        {"num_accumulated": 3},
        {"num_accumulated": 3, "recomputed": True},
        {"param_bits": 16},
    ],
    ids=str,
)
def test_recipes_change_the_peak_as_predicted(recipe: dict[str, Any]) -> None:
    setup = StepSetup(batch_size=8, optimizer="AdamW", **recipe)
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    measured = measure_peak_bytes(Decodes, tokens, setup)
    told, plain = (
        trace_workload(Decodes, tokens, batch_size=2, optimizer="AdamW", kernels="cpu", **settings)
        for settings in (recipe, {})
    )
    predicted, without = (
        estimate_memory(work.with_batch_size(8), foreach=False).peak for work in (told, plain)
    )
    assert predicted == pytest.approx(measured, rel=0.1)
    assert abs(without - measured) > 5 * abs(predicted - measured)
