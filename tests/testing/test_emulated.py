import pytest
import torch

from paceline.testing import EmulatedModel


def model() -> EmulatedModel:
    return EmulatedModel([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [4, 0, 41])


def test_parameters_have_the_size_that_was_asked_for() -> None:
    shapes = {name: tuple(value.shape) for name, value in model().named_parameters()}
    assert shapes == {"layers.0.weight": (1,), "layers.2.weight": (10,)}
    assert list(model().buffers()) == []


def test_each_backward_pass_adds_a_constant_gradient_of_full_size() -> None:
    emulated = model()
    for _ in range(2):
        emulated(torch.zeros(2)).sum().backward()
    gradients = [parameter.grad for parameter in emulated.parameters()]
    for gradient, size in zip(gradients, (1, 10), strict=True):
        assert gradient is not None
        assert torch.equal(gradient, torch.full((size,), 2e-3))
    # What happens to gradients in place, an all-reduce or a zeroing, must not reach the constant.
    assert torch.equal(emulated.layers[2].gradient, torch.full((10,), 1e-3))


def test_it_sleeps_for_the_profile_backwards_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    result = EmulatedModel([0.1, 0.2], [0.3, 0.4], [0, 8])(torch.ones(3))
    result.sum().backward()
    assert slept == [0.1, 0.2, 0.4, 0.3]
    assert torch.equal(result, torch.ones(3))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.1], [0.1, 0.1], [4]), r"backward_s must hold one value per layer \(1 in forward_s\)"),
        (([0.1], [0.1], [4, 4]), "gradient_bytes must hold one value per layer .*got 2"),
        (([0.1], [-0.1], [4]), "backward_s must not be negative, got -0.1"),
    ],
)
def test_columns_must_fit(
    columns: tuple[list[float], list[float], list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EmulatedModel(*columns)
