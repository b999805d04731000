from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from paceline.torch.order._gradient_sketch import GradientSketch, quantise_rows

ROOM_FOR_ALL = 1_000_000
NUM = 6


def squares(output: Any) -> Tensor:
    """A loss that is a sum over examples, each with a gradient of its own."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor.square().sum()


def one_by_one(model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor] = squares) -> Tensor:
    """The oracle: run each example alone and read its gradients."""
    rows = []
    for example in x.split(1):
        model.zero_grad()
        loss(model(example)).backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        rows.append(torch.cat([g.flatten() for g in grads]))
    model.zero_grad()
    return torch.stack(rows)


def sketched(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    with GradientSketch(model, **{"dim": ROOM_FOR_ALL, "reduction": "sum", **options}) as sketch:
        squares(model(x)).backward()
        assert sketch.left_out == {}
        rows = sketch.take()
    model.zero_grad()
    return rows


def assert_same_products(rows: Tensor, exact: Tensor, rtol: float = 1e-5) -> None:
    products, truth = rows.double() @ rows.double().T, exact.double() @ exact.double().T
    torch.testing.assert_close(products, truth, rtol=rtol, atol=rtol * float(truth.abs().max()))


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase, part: str = "sequence") -> None:
        super().__init__()
        self.layer, self.part = layer, part

    def forward(self, x: Tensor) -> Tensor:
        output, state = self.layer(x)
        last: Tensor = state[1] if isinstance(state, tuple) else state
        return output if self.part == "sequence" else last.transpose(0, 1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(9, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        logits: Tensor = self.head(self.hidden(self.hidden(x).tanh()))
        return logits


def tokens() -> Tensor:
    return torch.randint(0, 9, (NUM, 7), generator=torch.Generator().manual_seed(1))


def randn(*shape: int) -> Tensor:
    return torch.randn(NUM, *shape, generator=torch.Generator().manual_seed(1))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, 3), lambda: randn(4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), lambda: randn(4)),
    "linear over positions": (lambda: nn.Linear(4, 3), lambda: randn(2, 5, 4)),
    "embedding": (lambda: nn.Embedding(9, 4), tokens),
    "embedding with padding": (lambda: nn.Embedding(9, 4, padding_idx=2), tokens),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), lambda: randn(2, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), lambda: randn(2, 8, 7)),
    "conv2d strided": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        lambda: randn(2, 8, 7),
    ),
    "conv2d same": (lambda: nn.Conv2d(2, 3, 3, padding="same", bias=False), lambda: randn(2, 6, 6)),
    "layer norm": (lambda: nn.LayerNorm(4), lambda: randn(3, 4)),
    "layer norm over two axes": (lambda: nn.LayerNorm((3, 4), bias=False), lambda: randn(5, 3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), lambda: randn(3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4), lambda: randn(4, 5, 5)),
    "batch norm, evaluating": (lambda: nn.BatchNorm2d(4).eval(), lambda: randn(4, 5, 5)),
    "lstm": (lambda: Recurrent(nn.LSTM(4, 3, batch_first=True)), lambda: randn(5, 4)),
    "lstm's memory": (
        lambda: Recurrent(nn.LSTM(4, 3, 2, batch_first=True), "state"),
        lambda: randn(5, 4),
    ),
    "gru both ways": (
        lambda: Recurrent(nn.GRU(4, 3, 2, batch_first=True, bidirectional=True)),
        lambda: randn(5, 4),
    ),
    "shared weights": (Tied, tokens),
}


@pytest.mark.parametrize("name", LAYERS)
def test_with_room_for_all_rows_are_the_exact_gradients(name: str) -> None:
    torch.manual_seed(0)
    make_model, make_input = LAYERS[name]
    model, x = make_model(), make_input()
    rows = sketched(model, x)
    assert rows.shape[1] == sum(p.numel() for p in model.parameters())
    assert_same_products(rows, one_by_one(model, x))


@pytest.mark.parametrize("name", ["linear over positions", "conv2d strided", "shared weights"])
def test_inner_products_are_kept_within_the_stated_variance(name: str) -> None:
    torch.manual_seed(0)
    make_model, make_input = LAYERS[name]
    model, x = make_model(), make_input()
    exact = one_by_one(model, x).double()
    truth, norms = exact @ exact.T, exact.norm(dim=1)
    errors = []
    for seed in range(150):
        rows = sketched(model, x, dim=12 * (1 + 2 * (name == "shared weights")), seed=seed).double()
        errors.append((rows @ rows.T - truth) / norms[:, None] / norms)
    sketch = GradientSketch(model, dim=rows.shape[1])
    sketch.remove_hooks()
    error = torch.stack(errors)
    assert rows.shape[1] < exact.shape[1]
    assert error.square().mean() <= sketch.relative_variance
    # The mean over seeds: four standard errors of an unbiased estimate.
    assert error.mean(0).abs().max() <= 4 * (sketch.relative_variance / 150) ** 0.5


def test_a_deep_model_agrees_with_functional_per_example_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    x, label = randn(1, 8, 8), torch.arange(NUM) % 5
    with GradientSketch(model, dim=ROOM_FOR_ALL) as sketch:
        functional.cross_entropy(model(x), label).backward()
        rows = sketch.take()

    def loss(parameters: dict[str, Tensor], image: Tensor, answer: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (image[None],))
        return functional.cross_entropy(logits, answer[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    grads = vmap(grad(loss), (None, 0, 0))(parameters, x, label)
    assert_same_products(rows, torch.cat([g.flatten(1) for g in grads.values()], 1))


def test_rows_of_batch_norm_in_training_add_up_to_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
    rows = sketched(model, x := randn(1, 6, 6))
    squares(model(x)).backward()
    total = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(rows.sum(0).norm(), total.norm(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_counts_once(reentrant: bool) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 5))
    head = nn.Linear(5, 2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, x: Tensor) -> Any:
            return self.head(checkpoint(self.body, x, use_reentrant=reentrant))

    x = randn(4).requires_grad_()
    rows = sketched(Model(), x)
    assert_same_products(rows, one_by_one(nn.Sequential(body, head), x.detach()))


def test_a_reentrant_checkpoint_with_two_waiting_passes_is_refused() -> None:
    layer = nn.Linear(4, 2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.layer, x, use_reentrant=True)

    model, x = Model(), randn(4).requires_grad_()
    with GradientSketch(model, dim=64):
        both = squares(model(x)) + squares(model(2 * x))
        with pytest.raises(RuntimeError, match="2 forward passes wait"):
            both.backward()


def test_accumulated_passes_give_their_rows_in_order() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), randn(4)
    with GradientSketch(model, dim=ROOM_FOR_ALL, reduction="sum") as sketch:
        for part in x.split((4, 2)):
            (0.5 * squares(model(part))).backward()
        separate = sketch.take(loss_scale=0.5)
        (squares(model(x[:4])) + squares(model(x[4:]))).backward()
        together = sketch.take()
    assert separate.shape[0] == NUM
    assert_same_products(separate, one_by_one(model, x))
    torch.testing.assert_close(together, separate)


def test_after_a_mean_rows_are_the_gradients_of_the_examples_own_losses() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), randn(4)
    by_sum = sketched(model, x)
    with GradientSketch(model, dim=ROOM_FOR_ALL) as sketch:
        (squares(model(x)) / NUM).backward()
        torch.testing.assert_close(sketch.take(), by_sum)


def test_groups_have_the_mean_of_their_rows() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), randn(4)
    rows, groups = sketched(model, x, dim=8), sketched(model, x, dim=8, per=4)
    torch.testing.assert_close(groups, torch.stack([rows[:4].mean(0), rows[4:].mean(0)]))


def test_autocast_and_a_loss_scale_change_only_the_rounding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.ReLU()
    )
    x = randn(1, 6, 6)
    exact = sketched(model, x)
    with GradientSketch(model, dim=ROOM_FOR_ALL, reduction="sum") as sketch:
        with torch.autocast("cpu", torch.bfloat16):
            loss = squares(model(x).float())
        (1024 * loss).backward()
        rows = sketch.take(loss_scale=1024)
    assert rows.dtype == torch.float32
    assert_same_products(rows, exact, rtol=0.03)


def test_other_types_take_the_same_sums() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2)), randn(2, 6, 6)
    single = sketched(model, x, dim=40)
    torch.testing.assert_close(sketched(model.double(), x.double(), dim=40), single)


def test_a_sequence_first_model_names_its_axis() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    x = randn(5, 4)
    torch.testing.assert_close(
        sketched(layers, x.transpose(0, 1), batch_dim=1), sketched(layers, x), rtol=1e-4, atol=1e-4
    )


def test_flattened_positions_belong_to_their_examples() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3), randn(5, 4)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return self.layer(x.reshape(-1, 4))

    torch.testing.assert_close(sketched(Model(), x), sketched(layer, x))


@pytest.mark.parametrize("name", ["linear", "conv2d", "gru both ways", "shared weights"])
def test_training_is_the_same_bit_for_bit(name: str) -> None:
    make_model, make_input = LAYERS[name]
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, x = make_model(), make_input()
        noisy = nn.Sequential(model, nn.Dropout(0.5))
        sketch = GradientSketch(noisy, dim=64)
        if not watched:
            sketch.remove_hooks()
        squares(noisy(x)).backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([*grads, torch.rand(1)])
        sketch.remove_hooks()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.places, self.linear = nn.Embedding(5, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.depthwise = nn.Conv1d(4, 4, 1, groups=4)
        self.partly = nn.Linear(4, 4)
        self.partly.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) * self.scale + self.places(torch.arange(5))
        x = self.attention(x, x, x)[0] + functional.linear(x, self.linear.weight)
        y: Tensor = self.partly(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
        return y


def test_what_is_left_out_is_named_with_its_reason() -> None:
    torch.manual_seed(0)
    model, x = Odd(), randn(5, 4)
    with GradientSketch(model, dim=64) as sketch:
        squares(model(x)).backward()
        assert sketch.take().shape[0] == NUM
        told = sketch.left_out
    assert set(told) == {
        "scale",
        "places.weight",
        "linear.weight",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
        "depthwise.weight",
        "depthwise.bias",
        "partly.bias",
    }
    assert told["scale"] == "Odd is not sketched"
    assert told["places.weight"] == "looks up 5 rows for 6 examples"
    assert "also used directly in Odd" in told["linear.weight"]
    assert "functional calls" in told["attention.out_proj.weight"]
    assert "several groups" in told["depthwise.weight"]
    assert told["partly.bias"] == "its weight is not trained"


def test_skipped_modules_are_left_out_and_not_told_of() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), nn.Linear(5, 3)), randn(4)
    with GradientSketch(model, dim=1024, skip=["0"]) as sketch:
        squares(model(x)).backward()
        rows, told = sketch.take(), sketch.left_out
    head = nn.Sequential(model[1])
    with GradientSketch(head, dim=1024) as alone:
        squares(head(model[0](x).detach())).backward()
        torch.testing.assert_close(rows, alone.take())
    assert (told, sketch.dim) == ({}, 3 * 6)


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_epochs_that_are_not_sketched_have_no_hooks() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), randn(4)
    sketch = GradientSketch(model, dim=64, every=4)
    lengths = []
    for epoch in range(9):
        sketch.set_epoch(epoch)
        squares(model(x)).backward()
        lengths.append(len(sketch.take()))
        assert (num_hooks(model) > 0) == sketch.is_on == (epoch % 4 == 0)
    assert lengths == [NUM, 0, 0, 0, NUM, 0, 0, 0, NUM]


def test_the_model_is_left_as_it_was() -> None:
    model, x = nn.Linear(4, 3), randn(4)
    with GradientSketch(model, dim=64) as sketch:
        output = model(x)
    squares(output).backward()
    assert num_hooks(model) == 0
    assert len(sketch.take()) == 0


def test_passes_without_a_gradient_have_no_rows() -> None:
    model, x = nn.Linear(4, 3), randn(4)
    with GradientSketch(model, dim=64) as sketch:
        with torch.no_grad():
            model(x)
        model(x)
        squares(model(x[:2])).backward()
        assert len(sketch.take()) == 2
        assert len(sketch.take()) == 0


def test_the_seed_fixes_the_projections() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 10), randn(20)
    first = sketched(model, x, dim=16, seed=3)
    torch.manual_seed(99)
    assert torch.equal(sketched(model, x, dim=16, seed=3), first)
    assert not torch.equal(sketched(model, x, dim=16, seed=4), first)


def test_frozen_layers_take_no_room() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    rows = sketched(model, randn(4))
    assert rows.shape[1] == 3 * 2 + 2


def test_stored_rows_are_within_half_a_step() -> None:
    rows = randn(32)
    values, scale = quantise_rows(rows)
    assert values.dtype == torch.int8
    assert ((values * scale[:, None] - rows).abs() <= 0.5001 * scale[:, None]).all()
    values, scale = quantise_rows(torch.zeros(2, 3))
    assert not values.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 1}, "at least the number of layers, 2"),
        ({"dim": 64, "every": 0}, "at least 1"),
        ({"dim": 64, "per": 0}, "at least 1"),
        ({"dim": 64, "reduction": "max"}, '"mean" or "sum"'),
        ({"dim": 64, "skip": ["head"]}, "modules of the model, got 'head'; it has 0, 1"),
        ({"dim": 64, "skip": ["0", "1"]}, "no layer of the model can be sketched"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientSketch(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), **options)


def test_a_model_without_known_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer of the model can be sketched"):
        GradientSketch(nn.PReLU(), dim=64)
