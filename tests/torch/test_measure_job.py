from collections.abc import Callable
from math import isfinite
from typing import Any

import pytest
import torch
from torch import nn

from paceline.cost import Job, Worker
from paceline.errors import MeasurementError
from paceline.torch import measure_job

X = torch.ones(2, 4)


def bytes_of(job: Job) -> list[tuple[str, int]]:
    return [(layer.name, layer.gradient_bytes) for layer in job.layers]


class BackToFront(nn.Module):
    """Registered in another order than called; `unused` is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 2)
        self.unused = nn.Linear(5, 5)
        self.first = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x).relu())
        return result


class Tied(nn.Module):
    """A language model whose head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, text: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"logits": scale * self.head(self.embed(text))}


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, num_heads=2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(x, x, x)
        result: torch.Tensor = self.head(mixed)
        return result


class Stateful(nn.Module):
    """Everything that a forward pass can change; raises at one of its calls if asked to."""

    def __init__(self, raises_at: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(4))
        self.num_calls, self.raises_at = 0, raises_at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        x = self.drop(self.norm(self.layer(x)))
        self.mean = 0.9 * self.mean + x.detach().mean(dim=0)  # replaced, not changed in place
        if self.num_calls == self.raises_at:
            raise ArithmeticError("the forward pass failed")
        return x


def test_each_layer_gets_its_own_seconds(clock: Any, timed: Any) -> None:
    model = nn.Sequential(
        timed(clock, 1.0, 16.0),
        timed(clock, 2.0, 32.0, has_weight=False),
        timed(clock, 4.0, 64.0),
    )
    job = measure_job(model, X, loss=lambda y: clock.spend(y, 8.0, 128.0).sum(), num_steps=4)
    assert [layer.name for layer in job.layers] == ["0", "2"]
    # The activation counts to the layer that ends next; the loss to the last layer.
    assert [layer.forward_s for layer in job.layers] == [1.0, 2.0 + 4.0 + 8.0]
    assert [layer.backward_s for layer in job.layers] == [32.0 + 16.0, 128.0 + 64.0]
    assert (job.forward_s, job.backward_s) == (15.0, 240.0)


def test_a_layer_that_is_called_twice_gets_the_sum(clock: Any, timed: Any) -> None:
    twice, once = timed(clock, 1.0, 16.0), timed(clock, 2.0, 32.0)
    job = measure_job(nn.Sequential(twice, once, twice), X, num_steps=4)
    assert [(layer.name, layer.forward_s) for layer in job.layers] == [("0", 2.0), ("1", 2.0)]
    assert job.backward_s == 2 * 16.0 + 32.0
    assert bytes_of(job) == [("0", 4), ("1", 4)]


def test_medians_leave_out_the_warm_up(clock: Any, timed: Any) -> None:
    layer = timed(clock, 0.0, 1.0)
    seconds = iter([900.0, 800.0, 700.0, 5.0, 100.0, 6.0])
    layer.register_forward_pre_hook(lambda *_: setattr(layer, "forward_s", next(seconds)))
    assert measure_job(layer, X, num_steps=6).forward_s == 6.0


def test_layers_come_in_the_order_of_their_first_call(device: torch.device) -> None:
    job = measure_job(BackToFront().to(device), X.to(device), num_steps=4)
    assert bytes_of(job) == [
        ("first", 4 * (4 * 8 + 8)),
        ("last", 4 * (8 * 2 + 2)),
        ("unused", 0),
    ]
    unused = job.layers[-1]
    assert (unused.forward_s, unused.backward_s) == (0.0, 0.0)


def test_seconds_are_finite_and_add_up(device: torch.device) -> None:
    job = measure_job(BackToFront().to(device), X.to(device), num_steps=6)
    assert job.source == "measured"
    for layer in job.layers:
        assert isfinite(layer.forward_s + layer.backward_s)
        assert min(layer.forward_s, layer.backward_s) >= 0
    assert job.forward_s == sum(layer.forward_s for layer in job.layers) > 0
    assert job.backward_s == sum(layer.backward_s for layer in job.layers) > 0


def test_a_process_alone_is_one_worker_without_a_link() -> None:
    job = measure_job(nn.Linear(4, 1), X, num_steps=4)
    assert job.workers == (Worker(),)
    assert job.link is None
    assert "measured job: 1 layers" in str(job)
    assert "no link, 1 workers" in str(job)


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor([[1, 2, 3]]),
        (torch.tensor([[1, 2, 3]]), 2.0),
        {"text": torch.tensor([[1, 2, 3]]), "scale": 2.0},
    ],
    ids=["tensor", "tuple", "mapping"],
)
def test_shared_parameters_count_with_their_first_owner(batch: Any) -> None:
    assert bytes_of(measure_job(Tied(), batch, num_steps=4)) == [("embed", 160), ("head", 0)]


@pytest.mark.parametrize(
    ("dtype", "num_bytes"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)]
)
def test_gradient_bytes_follow_the_type(dtype: torch.dtype, num_bytes: int) -> None:
    job = measure_job(nn.Linear(4, 3).to(dtype), X.to(dtype), num_steps=4)
    assert job.gradient_bytes == num_bytes * (4 * 3 + 3)


def test_frozen_layers_keep_their_place_without_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    job = measure_job(model, X, num_steps=4)
    assert bytes_of(job) == [("0", 160), ("1", 0), ("2", 8)]
    assert job.layers[1].forward_s > 0


def test_a_part_that_is_used_without_being_called_stays_with_its_owner() -> None:
    job = measure_job(Attending(), torch.ones(2, 3, 8), num_steps=4)
    assert bytes_of(job) == [
        ("attention", 4 * (3 * 8 * 8 + 3 * 8)),
        ("attention.out_proj", 4 * (8 * 8 + 8)),
        ("head", 4 * (8 + 1)),
    ]
    assert job.layers[0].forward_s > 0
    assert job.layers[1].forward_s == 0.0
    assert job.layers[1].backward_s > 0


@pytest.mark.parametrize("raises_at", [None, 1, 3])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_the_model_is_left_as_it_was(
    device: torch.device, mode: bool, raises_at: int | None
) -> None:
    model = Stateful(raises_at).to(device).train(mode)
    model.layer.weight.grad = torch.full((4, 4), 7.0, device=device)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if device.type == "cuda" else None

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(device)
    if raises_at is None:
        measure_job(model, x, num_steps=5)
    else:
        with pytest.raises(ArithmeticError):
            measure_job(model, x, num_steps=5)

    assert model.num_calls == (raises_at or 5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(p.grad is gradients[name] for name, p in model.named_parameters())
    assert model.layer.weight.grad.unique().tolist() == [7.0]
    assert torch.equal(torch.get_rng_state(), random_state)
    if cuda_state is not None:
        assert torch.equal(torch.cuda.get_rng_state(), cuda_state)
    assert all(module.training is mode for module in model.modules())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_loss_turns_any_output_into_a_scalar() -> None:
    seen = []

    def loss(output: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(sorted(output))
        return output["logits"].sum()

    measure_job(Tied(), torch.tensor([[1, 2]]), loss=loss, num_steps=4)
    assert seen == [["logits"]] * 4


class Classifying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.layer(x).argmax(dim=1)]


def frozen() -> nn.Module:
    return nn.Linear(4, 3).requires_grad_(False)


@pytest.mark.parametrize(
    ("make_model", "batch", "message"),
    [
        (Classifying, X, "returned list without a floating tensor; pass loss="),
        (frozen, X, "no parameter gets a gradient"),
        (frozen, X.clone().requires_grad_(), "no parameter gets a gradient"),
        (nn.ReLU, X, "no parameter gets a gradient"),
    ],
    ids=["no floating output", "frozen", "frozen behind an input with gradient", "no parameter"],
)
def test_what_cannot_be_measured_is_an_error(
    make_model: Callable[[], nn.Module], batch: torch.Tensor, message: str
) -> None:
    with pytest.raises(MeasurementError, match=message):
        measure_job(make_model(), batch, num_steps=4)


@pytest.mark.parametrize("num_steps", [3, 0, -1])
def test_too_few_steps_are_refused_before_the_first(num_steps: int) -> None:
    model = Stateful()
    with pytest.raises(ValueError, match=f"num_steps must be at least 4, got {num_steps}"):
        measure_job(model, X, num_steps=num_steps)
    assert model.num_calls == 0
