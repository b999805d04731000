"""Published architectures, layer by layer: floating-point operations and parameter sizes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from paceline.comm import WireProblem
from paceline.cost import Link

VALUE_BYTES = 4
VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class Layer:
    """Forward operations (multiply and add, one example), and values of each parameter tensor."""

    flops: float
    tensors: tuple[int, ...]


def conv(num_in: int, num_out: int, kernel: int, side: int, *, norm: bool = False) -> Layer:
    """A convolution with `side`² outputs; with a batch norm behind it instead of a bias."""
    weight = num_in * num_out * kernel**2
    return Layer(2.0 * weight * side**2, (weight, *([num_out] * (2 if norm else 1))))


def linear(num_in: int, num_out: int, num_tokens: int = 1) -> Layer:
    """A linear layer with bias."""
    return Layer(2.0 * num_in * num_out * num_tokens, (num_in * num_out, num_out))


def norm(width: int, num_tokens: int) -> Layer:
    """A layer norm."""
    return Layer(8.0 * width * num_tokens, (width, width))


def transformer(width: int, num_tokens: int, num_blocks: int = 12) -> Iterator[Layer]:
    """Blocks of attention and a four times wider MLP."""
    for _ in range(num_blocks):
        yield norm(width, num_tokens)
        yield linear(width, 3 * width, num_tokens)
        yield Layer(4.0 * num_tokens**2 * width, ())
        yield linear(width, width, num_tokens)
        yield norm(width, num_tokens)
        yield linear(width, 4 * width, num_tokens)
        yield linear(4 * width, width, num_tokens)


def vgg16() -> Iterator[Layer]:
    """Simonyan and Zisserman, 2015."""
    num_in, side = 3, 224
    for widths in VGG_WIDTHS:
        for width in widths:
            yield conv(num_in, width, 3, side)
            num_in = width
        side //= 2
    yield from (linear(25088, 4096), linear(4096, 4096), linear(4096, 1000))


def alexnet() -> Iterator[Layer]:
    """Krizhevsky, 2014 (one tower, as in torchvision)."""
    yield from (conv(3, 64, 11, 55), conv(64, 192, 5, 27), conv(192, 384, 3, 13))
    yield from (conv(384, 256, 3, 13), conv(256, 256, 3, 13))
    yield from (linear(9216, 4096), linear(4096, 4096), linear(4096, 1000))


def resnet50() -> Iterator[Layer]:
    """He et al., 2016, with the stride in the 3 × 3 convolution."""
    yield conv(3, 64, 7, 112, norm=True)
    num_in, side = 64, 56
    for stage, (width, num_blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(num_blocks):
            side_in = side * 2 if stage and not block else side
            yield conv(num_in, width, 1, side_in, norm=True)
            yield conv(width, width, 3, side, norm=True)
            yield conv(width, 4 * width, 1, side, norm=True)
            if not block:
                yield conv(num_in, 4 * width, 1, side, norm=True)
            num_in = 4 * width
        side //= 2
    yield linear(2048, 1000)


def gpt2_small() -> Iterator[Layer]:
    """Radford et al., 2019, 1,024 tokens; the head shares the first tensor, so has none."""
    yield Layer(0.0, (50257 * 768, 1024 * 768))
    yield from transformer(768, 1024)
    yield norm(768, 1024)
    yield Layer(2.0 * 768 * 50257 * 1024, ())


def bert_base() -> Iterator[Layer]:
    """Devlin et al., 2019, 384 tokens, with pooler and without a task's head."""
    yield Layer(0.0, (30522 * 768, 512 * 768, 2 * 768))
    yield norm(768, 384)
    yield from transformer(768, 384)
    yield linear(768, 768)


def vit_base() -> Iterator[Layer]:
    """Dosovitskiy et al., 2021, patches of 16 × 16."""
    yield conv(3, 768, 16, 14)
    yield Layer(0.0, (768, 197 * 768))
    yield from transformer(768, 197)
    yield norm(768, 197)
    yield linear(768, 1000)


def mixer_base() -> Iterator[Layer]:
    """Tolstikhin et al., 2021, patches of 16 × 16."""
    yield conv(3, 768, 16, 14)
    for _ in range(12):
        yield norm(768, 196)
        yield from (linear(196, 384, 768), linear(384, 196, 768))
        yield norm(768, 196)
        yield from (linear(768, 3072, 196), linear(3072, 768, 196))
    yield norm(768, 196)
    yield linear(768, 1000)


# With the published number of parameters, so that a slip in a table cannot go unseen.
MODELS: dict[str, tuple[Callable[[], Iterator[Layer]], int]] = {
    "VGG-16": (vgg16, 138_357_544),
    "AlexNet": (alexnet, 61_100_840),
    "ResNet-50": (resnet50, 25_557_032),
    "GPT-2 small": (gpt2_small, 124_439_808),
    "BERT-base": (bert_base, 109_482_240),
    "ViT-B/16": (vit_base, 86_567_656),
    "MLP-Mixer-B/16": (mixer_base, 59_880_472),
}


def layers_of(model: str) -> list[Layer]:
    """Return the layers of a model in forward order.

    Raises:
        ValueError: If its parameters are not as many as published.
    """
    make, published = MODELS[model]
    layers = list(make())
    num_values = sum(sum(layer.tensors) for layer in layers)
    if num_values != published:
        raise ValueError(f"{model} must have {published} parameters, the table has {num_values}")
    return layers


def problem_of(
    model: str,
    *,
    forward_s: float,
    backward_s: float,
    link: Link,
    num_in_flight: int,
    num_heads: int = 1,
) -> WireProblem:
    """Spread the seconds over a model's layers by their operations; cut the last in `num_heads`."""
    *layers, head = layers_of(model)
    layers += [Layer(head.flops / num_heads, head.tensors)] * num_heads
    share = np.array([layer.flops for layer in layers])
    share /= share.sum()
    counts = [len(layer.tensors) for layer in layers]
    return WireProblem(
        forward_s=forward_s * share,
        layer=np.repeat(np.arange(len(layers)), counts),
        num_bytes=VALUE_BYTES * np.array([float(n) for layer in layers for n in layer.tensors]),
        ready_s=np.repeat(backward_s * np.cumsum(share[::-1])[::-1], counts),
        backward_s=backward_s,
        link=link,
        num_in_flight=num_in_flight,
    )
