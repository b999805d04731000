from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paceline.predict.work._workload import Workload
from paceline.torch.predict._trace import TraceError, record_step, trace_workload
from paceline.torch.predict._trace_setup import StepSetup


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.encoder(self.embed(tokens))


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.rnn(x)[0]


class Sends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> Any:
        sent = self.linear(x)[edges[0]]
        return torch.zeros_like(x).index_add(0, edges[1], sent)


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.linear(x)
        return y if y.sum() > 0 else -y


def mlp() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(12, 12), nn.GELU()) for _ in range(4)]
    return nn.Sequential(*blocks, nn.LayerNorm(12))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def nodes(num: int) -> Any:
    edges = torch.arange(6 * num).reshape(2, -1) % num
    return torch.randn(num, 8), edges


TOKENS = torch.zeros(1, 10, dtype=torch.int64)
MODELS: dict[str, tuple[Any, Any, str, int]] = {
    "MLP": (mlp, torch.zeros(1, 12), "MLP", 4),
    "CNN": (cnn, torch.zeros(1, 3, 8, 8), "CNN", 4),
    "Transformer": (Attends, TOKENS, "Transformer", 3),
    "RNN": (Recurs, torch.zeros(1, 5, 8), "RNN", 1),
    "other": (Sends, nodes, "other", 1),
}


@pytest.fixture(params=MODELS, scope="module")
def traced(request: pytest.FixtureRequest) -> tuple[str, Workload]:
    build, inputs, _, _ = MODELS[request.param]
    work = trace_workload(build, inputs, batch_size=6, optimizer="AdamW", kernels="cpu")
    return request.param, work


def test_family_and_depth_are_seen(traced: tuple[str, Workload]) -> None:
    name, work = traced
    assert (work.family, work.depth) == MODELS[name][2:]


def test_a_trace_is_what_a_real_step_does(traced: tuple[str, Workload]) -> None:
    name, work = traced
    build, inputs, _, _ = MODELS[name]
    model = build()
    batch = (
        inputs(6)
        if callable(inputs) and not isinstance(inputs, torch.Tensor)
        else (torch.zeros(6, *inputs.shape[1:], dtype=inputs.dtype))
    )
    _, real = record_step(model, batch, StepSetup(batch_size=6, optimizer="AdamW"))
    assert real.forward_flops_per_example == work.forward_flops_per_example
    assert real.num_kernels == work.num_kernels
    assert real.num_params == work.num_params == sum(p.numel() for p in model.parameters())
    if name != "RNN":  # its kernel rounds its workspace up to pages
        assert real.saved_bytes_per_example == pytest.approx(work.saved_bytes_per_example, rel=0.1)
    # The few allocations that fake tensors make differently are views.
    assert {op for op in real.operators if op.operator_class not in ("view", "elementwise")} == {
        op for op in work.operators if op.operator_class not in ("view", "elementwise")
    }


@pytest.mark.parametrize("name", ["MLP", "CNN"])
def test_flops_are_those_of_torchs_own_counter(name: str) -> None:
    build, inputs, _, _ = MODELS[name]
    with FlopCounterMode(display=False) as counter:
        build()(torch.zeros(6, *inputs.shape[1:]))
    work = trace_workload(build, inputs, batch_size=6)
    assert work.forward_flops_per_example * 6 == counter.get_total_flops()


def test_facts_of_a_small_cnn_by_hand() -> None:
    work = trace_workload(cnn, input_shape=(3, 8, 8), batch_size=4, precision=32)
    first, depthwise, pointwise, linear = 2 * 64 * 27 * 8, 2 * 16 * 9 * 8, 2 * 16 * 8 * 16, 320
    total = first + depthwise + pointwise + linear
    assert work.forward_flops_per_example == total
    assert work.conv_3x3_fraction == pytest.approx(first / total)
    assert work.depthwise_fraction == work.grouped_fraction == pytest.approx(depthwise / total)
    assert work.conv_1x1_fraction == pytest.approx(pointwise / total)
    assert work.sum_conv_outputs == 64 * 8 + 16 * 8 + 16 * 16
    assert work.max_conv_outputs == 64 * 8
    assert (work.num_norm_layers, work.num_activation_layers, work.num_kernels) == (1, 1, 6)
    assert work.example_bytes == 3 * 8 * 8
    outputs = 3 * 512 + 128 + 128 + 256 + 10
    # The norm's output comes with the mean and deviation of each of its eight channels.
    assert work.activation_bytes_per_example == pytest.approx(4 * outputs + 2 * 8 * 4 / 4, rel=1e-6)


def test_layers_hold_all_parameters_and_flops(traced: tuple[str, Workload]) -> None:
    _, work = traced
    assert sum(layer.num_params for layer in work.layers) == work.num_params
    assert sum(layer.forward_flops for layer in work.layers) == pytest.approx(
        work.forward_flops_per_example * 6
    )


def test_tokens_width_and_heads_of_a_transformer() -> None:
    work = trace_workload(Attends, TOKENS, batch_size=3)
    assert (work.num_tokens, work.width, work.num_heads) == (10, 16, 4)
    assert work.attention_fraction > 0
    assert work.example_bytes == 80


def test_work_grows_with_the_batch_and_shrinks_with_the_precision() -> None:
    small, large = (trace_workload(mlp, input_shape=(12,), batch_size=b) for b in (2, 8))
    assert small.forward_flops_per_example == large.forward_flops_per_example
    half = trace_workload(cnn, input_shape=(3, 8, 8), batch_size=4, precision=16)
    full = trace_workload(cnn, input_shape=(3, 8, 8), batch_size=4)
    assert half.saved_bytes_per_example < full.saved_bytes_per_example
    assert half.activation_bytes_per_example < 0.6 * full.activation_bytes_per_example


def test_a_module_is_left_as_it_is() -> None:
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    work = trace_workload(model, input_shape=(12,), batch_size=4, name="mine")
    assert work.name == "mine"
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert type(value) is torch.Tensor
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_huge_model_needs_no_memory() -> None:
    work = trace_workload(
        lambda: nn.Sequential(*(nn.Linear(20_000, 20_000) for _ in range(8))),
        input_shape=(20_000,),
        batch_size=512,
    )
    assert work.num_params == 8 * (20_000 * 20_000 + 20_000)


@pytest.mark.parametrize(("shape", "kind"), [((3, 3, 8, 8), "batch"), ((3, 8, 8), "one example")])
def test_a_function_may_bring_a_batch_or_one_example(shape: tuple[int, ...], kind: str) -> None:
    work = trace_workload(lambda: (cnn(), torch.zeros(shape)), batch_size=4)
    assert (work.input_kind, work.example_bytes) == (kind, 3 * 8 * 8)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(Chooses, (4,)), (mlp, (5,)), (Attends, (10,))],
    ids=["branches on values", "other width", "looks values up"],
)
def test_what_cannot_be_traced_says_so(model: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(TraceError, match="the model cannot be traced"):
        trace_workload(model, input_shape=shape, batch_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"precision": 8}, "precision must be 32"),
        ({"optimizer": "Magic"}, "optimizer must be a class of torch.optim"),
        ({"input_shape": None}, "pass either example_input or input_shape"),
        ({"example_input": torch.zeros(1, 12)}, "pass either example_input or input_shape"),
        ({"input_shape": (0,)}, "input_shape must be positive"),
        ({"model": lambda: 3}, "it returned int"),
    ],
)
def test_a_bad_setting_is_answered_by_its_rule(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"model": mlp, "input_shape": (12,), "batch_size": 4}
    with pytest.raises(ValueError, match=message):
        trace_workload(**(settings | changes))


class Copying(nn.Module):
    """Makes its layers as copies of one, as `nn.TransformerEncoder` does."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.encoder(x)


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(3))
        )

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x)


def test_layers_that_were_copied_hold_what_others_do() -> None:
    copied, made = (
        trace_workload(model, input_shape=(4, 32), batch_size=2) for model in (Copying, OneByOne)
    )
    assert copied.saved_bytes_per_example == made.saved_bytes_per_example


NEEDS_BF16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a CPU with AVX-512"
)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN's LSTM")
@pytest.mark.parametrize(
    ("width", "hidden", "bits"),
    [(32, 160, 32), (160, 32, 32), (16, 17, 32), pytest.param(64, 64, 16, marks=NEEDS_BF16)],
)
def test_the_workspace_of_an_lstm_is_that_of_its_kernel(width: int, hidden: int, bits: int) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(width, hidden, batch_first=True)

        def forward(self, x: torch.Tensor) -> Any:
            return self.rnn(x)[0]

    setup = StepSetup(batch_size=16, precision_bits=bits)
    _, real = record_step(Last(), torch.zeros(16, 50, width), setup)
    told = trace_workload(Last, input_shape=(50, width), batch_size=16, precision=bits)
    assert told.saved_bytes_per_example == pytest.approx(real.saved_bytes_per_example, rel=0.02)


class Deepens(nn.Module):
    """Reads its rates of stochastic depth from a tensor, and fills a large weight."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.linspace(0, 0.1, 3).tolist()
        self.layers = nn.Sequential(*(nn.Linear(300, 300) for _ in self.rates))
        nn.init.trunc_normal_(self.layers[0].weight)
        if self.layers[0].bias.abs().max() > 1:
            raise RuntimeError("small parameters are filled, so that they can be checked")

    def forward(self, x: torch.Tensor) -> Any:
        return self.layers(x) * (1 - self.rates[-1])


def test_a_constructor_that_reads_values_is_called_for_real() -> None:
    random = torch.get_rng_state()
    work = trace_workload(Deepens, input_shape=(300,), batch_size=4)
    assert work.num_params == 3 * (300 * 300 + 300)
    assert torch.equal(random, torch.get_rng_state())


def test_a_function_that_raises_is_no_model_that_cannot_be_traced() -> None:
    def build() -> nn.Module:
        raise KeyError("weights")

    with pytest.raises(ValueError, match=r"build\(\) raised KeyError: 'weights'") as caught:
        trace_workload(build, input_shape=(4,), batch_size=4)
    assert isinstance(caught.value.__cause__, KeyError)


class Convolves(nn.Module):
    """Most FLOPs in linear layers, as in ConvNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 7, padding=3, groups=32) for _ in range(3))
        self.linears = nn.ModuleList(nn.Linear(32, 128) for _ in range(3))
        self.back = nn.ModuleList(nn.Linear(128, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        for conv, up, down in zip(self.convs, self.linears, self.back, strict=True):
            x = x + down(up(conv(x).permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2)
        return x


def test_convolutions_throughout_make_a_cnn() -> None:
    work = trace_workload(Convolves, input_shape=(32, 8, 8), batch_size=2)
    assert (work.family, work.matmul_fraction > 0.5) == ("CNN", True)


LENGTH = 64


def attends_with_dropout() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.1)


def test_a_gpu_keeps_no_matrix_of_attention_with_dropout() -> None:
    like_gpu, like_cpu = (
        trace_workload(
            attends_with_dropout, input_shape=(LENGTH, 16), batch_size=2, kernels=kernels
        )
        for kernels in ("gpu", "cpu")
    )
    matrix_bytes = 4 * LENGTH * LENGTH * 4
    assert like_cpu.saved_bytes_per_example - like_gpu.saved_bytes_per_example > matrix_bytes
    assert {op.dims for op in like_gpu.operators if op.operator_class == "attention"} == {
        (2, 4, LENGTH, LENGTH, 4)
    }
    # The products are those of attention, counted as one call.
    assert like_gpu.forward_flops_per_example == like_cpu.forward_flops_per_example


def test_blocks_that_are_run_again_keep_their_input_only() -> None:
    def build() -> nn.Module:
        return nn.Sequential(*(attends_with_dropout() for _ in range(4)), nn.Linear(16, 16))

    plain, again = (
        trace_workload(build, input_shape=(LENGTH, 16), batch_size=2, recomputed=each)
        for each in (False, True)
    )
    # The blocks run again with the kernels that were counted before.
    assert again.forward_flops_per_example == plain.forward_flops_per_example
    assert sum(op.flops * op.num_calls for op in again.operators) > 1.2 * sum(
        op.flops * op.num_calls for op in plain.operators
    )
    assert again.moments[0].bytes_per_example < 0.5 * plain.moments[0].bytes_per_example
    assert again.num_params == plain.num_params
